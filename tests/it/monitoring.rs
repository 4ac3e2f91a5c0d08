//! What is shipped for Prometheus and Grafana, against what a running plugin answers: nobody is to wait for an alert on a metric
//! that does not exist.
//!
//! Tests whose name begins with `prometheus_` need Prometheus itself and run by `make monitoring-test`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::PROGRAM;
use crate::debug_server::{Debugged, free_address, get};
use crate::sim::Fault;
use crate::support::client::{new_volume, publish};
use crate::support::single_plugin::{DROPLET, SinglePlugin, until};
use crate::support::wait_for;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("nomad/monitoring")
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// All names that a running plugin has, as Prometheus calls them: a histogram's and a counter's with their endings.
fn scraped_names() -> BTreeSet<String> {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::launch(|flag| solo.launch(&[flag]));
    let client = &debugged.plugin.client;
    let id = client.create(&new_volume("blog", 1 << 30)).unwrap().volume_id;
    publish(client, &id, DROPLET).unwrap();
    let (status, text) = debugged.get("/metrics");
    assert_eq!(status, 200);
    let typed = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    typed
        .flat_map(|typed| {
            let (name, kind) = typed.split_once(' ').unwrap();
            let endings: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_count", "_sum"],
                "gauge" => &[""],
                other => panic!("{name} is a {other}"),
            };
            endings.iter().map(move |ending| format!("{name}{ending}"))
        })
        .collect()
}

/// The words of a text that name metrics of the plugin.
fn named_in(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_word(c)).filter(|word| word.starts_with("do_csi_"));
    words.map(str::to_owned).collect()
}

#[test]
fn whatever_rules_and_dashboard_name_is_in_a_real_scrape_and_the_page_has_all_of_it() {
    let scraped = scraped_names();
    assert!(scraped.len() > 30, "{scraped:#?}");
    let (alerts, dashboard) = (read("nomad/monitoring/alerts.yml"), read("nomad/monitoring/dashboard.json"));
    for (file, text) in [("alerts.yml", &alerts), ("dashboard.json", &dashboard)] {
        let named = named_in(text);
        assert!(named.len() > 8, "{file}: {named:?}");
        let unknown: Vec<&String> = named.difference(&scraped).collect();
        assert!(unknown.is_empty(), "{file} names what no plugin has: {unknown:?}");
    }
    // A metric that no panel shows is one that nobody will find.
    let shown = named_in(&dashboard);
    let family =
        |name: &String| name.trim_end_matches("_bucket").trim_end_matches("_count").trim_end_matches("_sum").to_owned();
    let shown: BTreeSet<String> = shown.iter().map(family).collect();
    let unseen: Vec<String> = scraped.iter().map(family).filter(|name| !shown.contains(name)).collect();
    assert!(unseen.is_empty(), "the dashboard shows nothing of {unseen:?}");
    let page = read("docs/monitoring.md");
    let told: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `do_csi_")?.split_once('`'))
        .map(|(name, _)| format!("do_csi_{name}"))
        .collect();
    let there: BTreeSet<String> = scraped.iter().map(family).collect();
    assert_eq!(told, there, "the table of metrics in docs/monitoring.md");
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(page.contains(&format!("| `{alert}` |")), "docs/monitoring.md does not explain {alert}");
    }
}

#[test]
fn the_dashboard_is_whole_and_asks_only_for_its_own_plugins() {
    let dashboard: Value = serde_json::from_str(&read("nomad/monitoring/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(!panel["title"].as_str().unwrap().is_empty());
        for target in panel["targets"].as_array().unwrap_or(&Vec::new()) {
            let query = target["expr"].as_str().unwrap();
            assert_eq!(query.matches("do_csi_").count(), query.matches("{job=\"$job\"").count(), "{query}");
        }
    }
    assert!(panels.len() > 20);
}

/// A Prometheus that is ended with the test.
struct Prometheus {
    child: Child,
    address: String,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Prometheus {
    /// Starts it in a directory, with the shipped rules, made quick, and this target.
    fn start(home: &Path, target: &str) -> Prometheus {
        let rules = read("nomad/monitoring/alerts.yml");
        let quick: String = rules
            .lines()
            .map(|line| if line.trim().starts_with("for: ") { "" } else { line })
            .map(|l| format!("{l}\n"))
            .collect();
        fs::write(home.join("alerts.yml"), quick).unwrap();
        let config = format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files: [alerts.yml]\nscrape_configs:\n  \
             - job_name: do-csi-plugin\n    static_configs:\n      - targets: ['{target}']\n"
        );
        fs::write(home.join("prometheus.yml"), config).unwrap();
        let address = free_address();
        let log = fs::File::create(home.join("prometheus.log")).unwrap();
        let child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                "prometheus",
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
            ])
            .arg(format!("--web.listen-address={address}"))
            .current_dir(home)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let prometheus = Prometheus { child, address };
        let is_ready =
            || std::net::TcpStream::connect(&prometheus.address).ok().and_then(|_| prometheus.ask("/-/ready"));
        assert!(wait_for(Duration::from_secs(60), is_ready).is_some(), "see {}/prometheus.log", home.display());
        prometheus
    }

    fn ask(&self, path: &str) -> Option<String> {
        let (status, body) = get(&self.address, path);
        (status == 200).then_some(body)
    }

    /// The alerts that fire now.
    fn firing(&self) -> BTreeSet<String> {
        let body = self.ask("/api/v1/alerts").unwrap_or_default();
        // The server may send it in chunks.
        let json = body.find('{').and_then(|from| body.rfind('}').and_then(|to| body.get(from..=to))).unwrap_or("{}");
        let answer: Value = serde_json::from_str(json).unwrap_or_default();
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
#[ignore = "needs prometheus: make monitoring-test"]
fn prometheus_scrapes_the_plugin_and_fires_an_alert_when_its_reason_comes_and_no_longer() {
    let solo = SinglePlugin::new(PROGRAM);
    let home = tempfile::tempdir().unwrap();
    let debugged = Debugged::launch(|flag| solo.launch(&[flag]));
    until("the plugin is ready", || debugged.get("/readyz").0 == 200);
    let prometheus = Prometheus::start(home.path(), &debugged.address);
    let up =
        || prometheus.ask("/api/v1/query?query=do_csi_ready%3D%3D1").is_some_and(|body| body.contains("\"value\""));
    let is_scraped = wait_for(Duration::from_secs(30), || up().then_some(()));
    let targets = || prometheus.ask("/api/v1/targets").unwrap_or_default();
    assert!(is_scraped.is_some(), "{}", targets());
    assert!(targets().contains("\"health\":\"up\""), "{}", targets());
    until("no alert fires while all is well", || prometheus.firing().is_empty());
    // The quota goes down.
    debugged.plugin.client.create(&new_volume("blog", 1 << 30)).unwrap();
    solo.sim.faults().add(Fault::hourly_limit(Duration::from_secs(1800)).on("POST", "/v2/volumes").times(1));
    debugged.plugin.client.create(&new_volume("shop", 1 << 30)).unwrap_err();
    until("the alert fires", || prometheus.firing().contains("DoCsiQuotaLow"));
    drop(debugged);
    until("the controller is missed", || prometheus.firing().contains("DoCsiNoController"));
}

#[test]
#[ignore = "needs prometheus: make monitoring-test"]
fn prometheus_and_people_share_the_port_and_a_browser_has_nothing_to_complain_of() {
    let solo = SinglePlugin::new(PROGRAM);
    let home = tempfile::tempdir().unwrap();
    let debugged = Debugged::launch(|flag| solo.launch(&[flag]));
    let client = &debugged.plugin.client;
    let id = client.create(&new_volume("blog", 1 << 30)).unwrap().volume_id;
    publish(client, &id, DROPLET).unwrap();
    publish(client, "<script>document.title = 'taken'</script>", DROPLET).unwrap_err();
    let url = format!("http://{}/", debugged.address);
    // What the page refers to and is refused, or not found, is an error in the browser's console.
    let show = |more: &[&str]| {
        let output = Command::new("chromium")
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"])
            .arg(format!("--user-data-dir={}", home.path().join("profile").display()))
            .args(more)
            .arg(&url)
            .current_dir(home.path())
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        let complaints: Vec<&str> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let page = show(&["--dump-dom"]);
    assert!(page.contains("<title>Droplet ") && !page.contains("<script"), "{page}");
    assert!(page.contains("How long attaches took (1)") && page.contains("<svg"), "{page}");
    for width in ["400", "1600"] {
        show(&[&format!("--window-size={width},900"), &format!("--screenshot={width}.png")]);
        assert!(fs::metadata(home.path().join(format!("{width}.png"))).unwrap().len() > 5_000);
    }
}
