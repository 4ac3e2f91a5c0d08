//! The demo, the bench and the served cloud, with the built plugin on a simulated DigitalOcean. The demo plays the story
//! of a volume and shows each step and its proof; the bench prints how fast volumes are attached, moved and shared, and
//! what that costs; `serve` keeps the cloud up, with the plugin on one droplet, for whatever else speaks CSI; `droplets`
//! plays the cases of `tests/vm` on virtual machines.
//!
//! Owns the command line of the example and what is shown on the terminal. The story itself is in `tests/support`, the
//! cloud beside this file.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "test support, shared with tests/it; this program uses a part of it and prints"
)]

#[path = "mod.rs"]
mod sim;
#[path = "../support/mod.rs"]
mod support;
#[path = "../vm/mod.rs"]
mod vm;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};

use sim::{Limits, Rules, SimConfig, Times};
use support::bench::{Calls, Together};
use support::cloud::{Cloud, Machine, Program};
use support::crowd::{BLANK, Blank, Crowded};
use support::encryption;
use support::facts;
use support::nomad::Nomad;
use support::nomad_story;
use support::nomad_story::{Report, Told};
use support::overhead::Figures;
use support::storm::{Lists, Return};
use support::story::{self, Listener};

/// How long an attach, detach or resize takes in the demo.
const ACTION_TIME: Duration = Duration::from_millis(1300);
/// How long one takes while serving: test suites make hundreds.
const SERVED_ACTION_TIME: Duration = Duration::from_millis(50);
/// The request limits while serving: far above what DigitalOcean allows, as a suite sends an hour's calls in a minute.
const SERVED_REQUESTS: usize = 1_000_000;

/// The most that the image may take, unpacked, in MB.
const IMAGE_AIM: f64 = 60.0;

/// What stands in for the images that the job files name.
const TASK_IMAGES: [(&str, &str); 2] =
    [("do-csi-plugin-tasks:busybox", "busybox:1.36"), ("do-csi-plugin-tasks:postgres", "postgres:16")];

const USAGE: &str = "usage: do-sim demo|bench|storm PLUGIN
       do-sim serve PLUGIN [COMMAND [ARGUMENT...]]
       do-sim image IMAGE ARCHIVE
       do-sim nomad PLUGIN ARCHIVE NOMAD JOBS REPORT
       do-sim nomad-table REPORT...
       do-sim droplet PLUGIN
       do-sim droplets PLUGIN IMAGES|loop KEPT [CASE]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["demo", program] => demo(Path::new(program)).map(|()| ExitCode::SUCCESS),
        ["bench", program] => bench(Path::new(program)).map(|()| ExitCode::SUCCESS),
        ["storm", program, what @ ..] => storm(Path::new(program), what).map(|()| ExitCode::SUCCESS),
        ["serve", program, command @ ..] => serve(Path::new(program), command),
        ["image", image, archive] => image_test(image, Path::new(archive)).map(|()| ExitCode::SUCCESS),
        ["nomad", program, archive, nomad, jobs, report] => {
            let [program, archive, nomad, jobs, report] = [program, archive, nomad, jobs, report].map(Path::new);
            nomad_test(program, archive, nomad, jobs, report).map(|()| ExitCode::SUCCESS)
        }
        ["nomad-table", reports @ ..] => print_table(reports).map(|()| ExitCode::SUCCESS),
        ["droplets", program, images, kept, case @ ..] if case.len() < 2 => {
            droplets(Path::new(program), images, Path::new(kept), case.first().copied()).map(|()| ExitCode::SUCCESS)
        }
        ["droplet", program] => droplet(Path::new(program)).map(|()| ExitCode::SUCCESS),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(code) => code,
        Err(err) => {
            eprintln!("\nFAILED  {err}");
            ExitCode::FAILURE
        }
    }
}

fn demo(program: &Path) -> Result<(), Box<dyn Error>> {
    let program: PathBuf = fs::canonicalize(program).map_err(|err| format!("{}: {err}", program.display()))?;
    let interrupted = watch_for_signals()?;
    let started = Instant::now();
    let rules = Rules { times: Times::actions(ACTION_TIME), ..Rules::default() };
    let cloud = Cloud::start(SimConfig { rules, ..SimConfig::default() }, &["node-a", "node-b"])?;
    let mut screen = Screen { steps: 0, bar: None, interrupted };
    let told = story::tell(&cloud, &program.as_path().into(), &mut screen);
    screen.settle();
    let told = told.and_then(|()| {
        if story::leaves_nothing_attached(&cloud.sim) { Ok(()) } else { Err("a volume is still attached".into()) }
    });
    let figures = told.and_then(|()| Figures::measure(&cloud, &program));
    let calls = cloud.sim.calls().total();
    // Whatever happened, everything is taken down, and what could not be taken down is a failure too.
    let closed = cloud.close();
    let figures = figures?;
    closed?;
    println!("\n{figures}");
    println!(
        "PASSED  {} steps in {:.1} s, {calls} API calls, nothing left behind",
        screen.steps,
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

fn bench(program: &Path) -> Result<(), Box<dyn Error>> {
    let program: PathBuf = fs::canonicalize(program).map_err(|err| format!("{}: {err}", program.display()))?;
    println!("{}", Calls::measure(&program).map_err(|err| err.to_string())?);
    // By itself, since it is work for the machine too, and not only waiting.
    println!("{}", Together::measure(&program).map_err(|err| err.to_string())?);
    for count in BLANK {
        println!("{}", Blank::measure(&program, count).map_err(|err| err.to_string())?);
    }
    println!("{}", Crowded::measure(&program).map_err(|err| err.to_string())?);
    Ok(())
}

/// What many do at once to the account's quota, or only some of it: `lists`, `one` and `thirty`.
fn storm(program: &Path, what: &[&str]) -> Result<(), Box<dyn Error>> {
    let program: PathBuf = fs::canonicalize(program).map_err(|err| format!("{}: {err}", program.display()))?;
    let is_asked = |name| what.is_empty() || what.contains(&name);
    if is_asked("lists") {
        println!("{}", Lists::measure(&program, 64, 5000).map_err(|err| err.to_string())?);
        println!("{}", Lists::measure(&program, 64, 10_000).map_err(|err| err.to_string())?);
    }
    for (name, plugins) in [("one", 1), ("thirty", 30)] {
        if is_asked(name) {
            println!("{}", Return::measure(&program, plugins).map_err(|err| err.to_string())?);
        }
    }
    Ok(())
}

/// Plays the story with the plugin's image, in containers as Nomad makes them, on two droplets with a network and a Docker
/// Engine each.
fn image_test(image: &str, archive: &Path) -> Result<(), Box<dyn Error>> {
    play(&["node-a", "node-b"], archive, |cloud, screen| {
        story::tell(cloud, &Program::Image(image.to_owned()), screen)?;
        image_figures(cloud, image)
    })
}

/// What an image and a container of it cost, whether its own health check finds the plugin healthy, and whether it encrypts.
fn image_figures(cloud: &Cloud, image: &str) -> Result<String, Box<dyn Error>> {
    let machine = cloud.machines.first().ok_or("no droplet")?;
    let engine = machine.engine.as_ref().ok_or("no Docker")?;
    let plugin = machine.start(Program::Image(image.to_owned()))?;
    let container = engine.run(&["ps", "--quiet"])?;
    let health = || engine.run(&["inspect", "--format={{.State.Health.Status}}", &container]).ok();
    support::wait_for(Duration::from_secs(30), || health().filter(|health| health == "healthy"))
        .ok_or("the image's health check does not find the plugin healthy")?;
    let size = engine.run(&["image", "inspect", "--format={{.Size}}", image])?.parse::<f64>()? / 1e6;
    story::ensure(size <= IMAGE_AIM, || format!("the image has {size:.1} MB, and may have {IMAGE_AIM}"))?;
    let (resident, anonymous) = plugin.memory_kb().ok_or("no memory figures")?;
    let encrypted = encryption::is_made(cloud, machine, &plugin.client)?;
    plugin.stop()?;
    Ok(format!(
        "image {:.1} MB unpacked; health check: healthy; resident memory in the container {:.1} MB ({:.1} MB anonymous); {}",
        size,
        resident as f64 / 1024.0,
        anonymous as f64 / 1024.0,
        encrypted
    ))
}

/// Plays the guide on a real Nomad with three clients, each on its own droplet, and writes down what became of each step.
fn nomad_test(program: &Path, archive: &Path, nomad: &Path, jobs: &Path, report: &Path) -> Result<(), Box<dyn Error>> {
    let (program, nomad) = (fs::canonicalize(program)?, fs::canonicalize(nomad)?);
    play(&["node-a", "node-b", "node-c"], archive, |cloud, screen| {
        // The story edits files as a reader of the guide does, so it has a copy of its own.
        let directory = cloud.root().join("jobs");
        for machine in &cloud.machines {
            let engine = machine.engine.as_ref().ok_or("no Docker")?;
            TASK_IMAGES.iter().try_for_each(|(ours, name)| engine.run(&["tag", ours, name]).map(drop))?;
        }
        let mut nomad = Nomad::start(&nomad, &cloud.machines, cloud.root(), jobs, &directory)?;
        println!("Nomad {}", nomad.version);
        let mut told = Told::default();
        let outcome = nomad_story::tell(cloud, &mut nomad, &program, screen, &mut told);
        if outcome.is_err() {
            eprintln!("{}", nomad.last_words());
        }
        let report_text = Report { version: nomad.version.to_string(), steps: told.steps };
        fs::write(report, report_text.to_string())?;
        let stopped = nomad.stop();
        outcome?;
        stopped?;
        Ok(told.memory)
    })
}

fn print_table(reports: &[&str]) -> Result<(), Box<dyn Error>> {
    let read = |path: &&str| -> Result<Report, Box<dyn Error>> { Report::parse(&fs::read_to_string(path)?) };
    let reports = reports.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    println!("\n{}", nomad_story::table(&reports));
    Ok(())
}

/// Plays something on droplets with a network and a Docker Engine each, and prints what it gives.
fn play(
    names: &[&str],
    archive: &Path,
    tell: impl FnOnce(&Cloud, &mut Screen) -> Result<String, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let mut screen = Screen { steps: 0, bar: None, interrupted: watch_for_signals()? };
    let started = Instant::now();
    let rules = Rules { times: Times::actions(ACTION_TIME), ..Rules::default() };
    let mut cloud = Cloud::start_with_network(SimConfig { rules, ..SimConfig::default() }, names)?;
    let told = cloud.start_engines(&[archive.to_owned()]).and_then(|()| tell(&cloud, &mut screen));
    screen.settle();
    let closed = cloud.close();
    let figures = told?;
    closed?;
    println!("\n{figures}");
    println!("PASSED  {} steps in {:.1} s, nothing left behind", screen.steps, started.elapsed().as_secs_f64());
    Ok(())
}

/// Plays the cases of virtual droplets, or those among them that loop devices are enough for.
fn droplets(program: &Path, images: &str, kept: &Path, case: Option<&str>) -> Result<(), Box<dyn Error>> {
    let program: PathBuf = fs::canonicalize(program).map_err(|err| format!("{}: {err}", program.display()))?;
    let stage = if images == "loop" { vm::Stage::Loops } else { vm::Stage::Machines(Path::new(images)) };
    vm::run(stage, &program, kept, case, watch_for_signals()?.as_ref())
}

/// Plays the life of one volume on the droplet that this runs on, with the real DigitalOcean, or with whatever stands at
/// the addresses that the plugin's own environment variables name.
fn droplet(program: &Path) -> Result<(), Box<dyn Error>> {
    let program: PathBuf = fs::canonicalize(program).map_err(|err| format!("{}: {err}", program.display()))?;
    let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let token = std::env::var("DIGITALOCEAN_ACCESS_TOKEN").map_err(|_| "DIGITALOCEAN_ACCESS_TOKEN is not set")?;
    let name = format!("do-csi-e2e-{}", std::process::id());
    println!("the volume is called {name}");
    confirm(&name)?;
    let metadata = variable("DIGITALOCEAN_METADATA_URL", "http://169.254.169.254");
    let id = facts::droplet_id(&metadata)?;
    let api = facts::Api::new(&variable("DIGITALOCEAN_API_URL", "https://api.digitalocean.com/"), &token);
    let home = tempfile::Builder::new().prefix("do-csi-").tempdir()?;
    let device_dir = format!("--device-dir={}", variable("DEVICE_DIR", "/dev/disk/by-id"));
    let machine = Machine::here(id, home.path(), &token, vec![device_dir]);
    let mut screen = Screen { steps: 0, bar: None, interrupted: watch_for_signals()? };
    let told = story::tell_one_life(&machine, &program.as_path().into(), &api, &name, &mut screen);
    screen.settle();
    told?;
    println!("\nPASSED  {} steps on droplet {id}; the volume {name} is deleted", screen.steps);
    Ok(())
}

/// Asks whether money may be spent, unless `CONFIRM=yes` says so.
fn confirm(name: &str) -> Result<(), Box<dyn Error>> {
    if std::env::var("CONFIRM").is_ok_and(|word| word == "yes") {
        return Ok(());
    }
    println!(
        "This makes a volume of 1 GiB, {name}, in your DigitalOcean account, attaches it to this droplet, grows it to"
    );
    println!("2 GiB, and deletes it. Type yes to go on:");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    if line.trim() == "yes" { Ok(()) } else { Err("nothing was done".into()) }
}

/// Keeps a cloud up with the plugin on its one droplet: until the command ends, which runs on that droplet, or, without
/// one, until standard input closes.
fn serve(program: &Path, command: &[&str]) -> Result<ExitCode, Box<dyn Error>> {
    let program: PathBuf = fs::canonicalize(program).map_err(|err| format!("{}: {err}", program.display()))?;
    let limits =
        Limits { requests_per_hour: SERVED_REQUESTS, requests_per_minute: SERVED_REQUESTS, ..Limits::default() };
    let rules = Rules { times: Times::actions(SERVED_ACTION_TIME), limits, ..Rules::default() };
    let cloud = Cloud::start(SimConfig { rules, ..SimConfig::default() }, &["node-a"])?;
    let served = serve_on(&cloud, &program, command);
    let closed = cloud.close();
    let code = served?;
    closed?;
    Ok(code)
}

fn serve_on(cloud: &Cloud, program: &Path, command: &[&str]) -> Result<ExitCode, Box<dyn Error>> {
    let machine = cloud.machines.first().ok_or("no droplet")?;
    let plugin = machine.start(program)?;
    let environment = environment(cloud, machine);
    let code = match command {
        [] => {
            environment.iter().for_each(|(name, value)| println!("{name}={value}"));
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
            ExitCode::SUCCESS
        }
        [name, arguments @ ..] => {
            let status = machine.droplet.command(Path::new(name)).args(arguments).envs(environment).status()?;
            status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    };
    if code != ExitCode::SUCCESS {
        eprintln!("{}", plugin.log());
    }
    plugin.stop()?;
    Ok(code)
}

/// What whoever uses the served cloud has to know.
fn environment(cloud: &Cloud, machine: &Machine) -> [(&'static str, String); 8] {
    let home = machine.home().display().to_string();
    [
        ("CSI_ENDPOINT", format!("unix://{}", machine.socket().display())),
        ("DIGITALOCEAN_API_URL", cloud.sim.api_url()),
        ("DIGITALOCEAN_METADATA_URL", cloud.sim.metadata_url(machine.id)),
        ("DIGITALOCEAN_ACCESS_TOKEN", support::cloud::TOKEN.to_owned()),
        ("DEVICE_DIR", cloud.sim.device_dir(machine.id).display().to_string()),
        ("DROPLET_ID", machine.node_id()),
        ("DROPLET_HOME", home),
        ("DROPLET_MOUNTS", machine.droplet.namespace()),
    ]
}

/// Turns Ctrl-C and SIGTERM into a wish to stop, so that everything is taken down in order.
fn watch_for_signals() -> Result<Arc<AtomicBool>, Box<dyn Error>> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    signals.thread_block()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let interrupted = Arc::clone(&interrupted);
        move || {
            let _signal = signals.wait();
            interrupted.store(true, Ordering::Relaxed);
        }
    });
    Ok(interrupted)
}

/// The terminal: a line for each step, and a spinner while a step runs.
struct Screen {
    steps: u32,
    bar: Option<ProgressBar>,
    interrupted: Arc<AtomicBool>,
}

impl Screen {
    fn settle(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Listener for Screen {
    fn chapter(&mut self, title: &str) {
        println!("\n{title}");
    }

    fn begins(&mut self, step: &str) {
        let bar = ProgressBar::new_spinner().with_message(step.to_owned());
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        self.bar = Some(bar);
    }

    fn ended(&mut self, step: &str, proof: &str, took: Duration) {
        self.settle();
        self.steps += 1;
        println!("  ok {:>7.1} ms  {step}\n                  {proof}", took.as_secs_f64() * 1000.0);
    }

    fn is_cancelled(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
