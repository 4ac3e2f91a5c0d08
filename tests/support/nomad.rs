//! A real Nomad: one server, a client on every droplet, and its command line, as an operator uses it.
//!
//! Owns the agents' processes and settings, and which files of the guide a version takes. Every command that is run through
//! [`Nomad::guide`] stands in the guide, word for word, and [`Nomad::unused`] tells which commands of the guide were never run.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::cloud::Machine;
use super::network::{CLOUD, api_url};
use super::plugin::send;
use super::story::StepResult;
use super::wait_for;

/// How long an agent may take to end by itself.
const END_LIMIT: Duration = Duration::from_secs(15);
/// Lines of each agent's log that are shown when something went wrong.
const LAST_WORDS: usize = 40;
/// Where clients keep their state, as Nomad's own packages have it. On each droplet it is a file system of its own.
pub const DATA_DIR: &str = "/opt/nomad/data";
/// How long Nomad may take for what takes seconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Where the files for older versions say that the secrets are: each of these directories belongs to one droplet alone.
const SECRETS: [(&str, &str); 2] = [("do-csi-plugin/token", super::cloud::TOKEN), ("postgres/password", "se#cret")];

/// A version of Nomad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32, u32);

/// Volumes can be created, and have capabilities; snapshots, and one volume for each allocation.
pub const HAS_CREATE: Version = Version(1, 1, 0);
/// A job for two allocations with one volume is refused when it is submitted.
pub const REFUSES_COUNT: Version = Version(1, 3, 0);
/// Variables, which job files read with `nomadVar`.
pub const HAS_VARIABLES: Version = Version(1, 4, 0);
/// The claim of a lost allocation is given up when its volume is created or registered again.
pub const FREES_DEAD: Version = Version(1, 6, 0);
/// Volumes can be grown.
pub const CAN_GROW: Version = Version(1, 6, 3);
/// `*` in `datacenters`.
const HAS_WILDCARD: Version = Version(1, 5, 0);
/// A drain leaves plugins alone by itself.
const DRAINS_PLUGINS_LAST: Version = Version(1, 3, 0);
/// The block `disconnect`.
const HAS_DISCONNECT: Version = Version(1, 8, 0);
/// A batch job that has ended gives its claim back.
const FREES_ENDED: Version = Version(0, 12, 0);

impl Version {
    /// Reads what `nomad version` prints, such as `Nomad v1.6.10`.
    pub fn parse(printed: &str) -> Option<Version> {
        let version = printed.lines().next()?.split_whitespace().nth(1)?.strip_prefix('v')?;
        let numbers = version.split(['-', '+']).next()?;
        let mut numbers = numbers.split('.').map(|number| number.parse().ok());
        Some(Version(numbers.next()??, numbers.next()??, numbers.next()??))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Nomad {
    program: PathBuf,
    /// What the program says it is.
    pub version: Version,
    server: Child,
    /// The clients, by the number of their droplet.
    clients: Vec<Option<Child>>,
    /// The job files and volume files, as a user would have them after following the guide.
    directory: PathBuf,
    guide: Vec<String>,
    used: BTreeSet<String>,
    logs: Vec<PathBuf>,
}

impl Nomad {
    /// Starts a server here and a client on every machine, with a copy of the job files as the working directory.
    pub fn start(
        program: &Path,
        machines: &[Machine],
        root: &Path,
        jobs: &Path,
        directory: &Path,
    ) -> StepResult<Nomad> {
        let guide = commands(&pages(jobs)?);
        let printed = Command::new(program).arg("version").output()?.stdout;
        let version = Version::parse(&String::from_utf8_lossy(&printed)).ok_or("it does not say its version")?;
        copy_files(version, jobs, directory)?;
        let data = root.join("server");
        fs::create_dir_all(&data)?;
        let config = data.join("server.hcl");
        fs::write(&config, server_config(&data))?;
        let server = agent(Command::new(program), &config, &data.join("log"))?;
        let mut nomad = Nomad {
            program: program.to_owned(),
            version,
            server,
            clients: Vec::new(),
            directory: directory.to_owned(),
            guide,
            used: BTreeSet::new(),
            logs: vec![data.join("log")],
        };
        for machine in machines {
            let client = nomad.start_client(machine)?;
            nomad.clients.push(Some(client));
            nomad.logs.push(log_of(machine));
        }
        let ready = nomad.await_clients(machines.len());
        ready.map_err(|err| format!("{err}\n{}", nomad.last_words()))?;
        Ok(nomad)
    }

    /// The ends of the agents' logs, for whoever has to find out what went wrong.
    pub fn last_words(&self) -> String {
        let end = |log: &PathBuf| {
            let text = fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(LAST_WORDS);
            format!("--- {}\n{}\n", log.display(), lines.get(from..).unwrap_or_default().join("\n"))
        };
        self.logs.iter().map(end).collect()
    }

    fn start_client(&self, machine: &Machine) -> StepResult<Child> {
        let config = machine.home().join("client.hcl");
        fs::write(&config, client_config(machine)?)?;
        let is_there = format!("[ \"$(findmnt -n -o SOURCE -T {DATA_DIR} 2>/dev/null)\" = nomad ]");
        let secrets = SECRETS.map(|(file, secret)| {
            format!("install -D -m 600 /dev/null /etc/{file} && printf %s '{secret}' > /etc/{file}")
        });
        // The directories are the droplet's own, and go with it.
        let script = format!(
            "{is_there} || {{ mount -t tmpfs nomad /opt && mkdir -p {DATA_DIR} /opt/etc/upper /opt/etc/work && \
             mount -t overlay -o lowerdir=/etc,upperdir=/opt/etc/upper,workdir=/opt/etc/work etc /etc && {}; }}",
            secrets.join(" && ")
        );
        let status = machine.droplet.command(Path::new("sh")).args(["-c", &script]).status()?;
        if !status.success() {
            return Err("the client's directories cannot be made".into());
        }
        agent(machine.droplet.command(&self.program), &config, &log_of(machine))
    }

    /// Kills the agent of one droplet, as a crash of the whole machine does.
    pub fn kill_client(&mut self, number: usize) -> StepResult<()> {
        let client = self.clients.get_mut(number).and_then(Option::take).ok_or("no such client")?;
        let mut client = client;
        client.kill()?;
        client.wait()?;
        Ok(())
    }

    /// Starts the agent of one droplet again.
    pub fn restart_client(&mut self, number: usize, machine: &Machine) -> StepResult<()> {
        let client = self.start_client(machine)?;
        *self.clients.get_mut(number).ok_or("no such client")? = Some(client);
        Ok(())
    }

    /// Waits until this many clients are ready.
    pub fn await_clients(&self, count: usize) -> StepResult<()> {
        self.until(&format!("{count} clients are ready"), || {
            let nodes = self.json(&["node", "status", "-json"])?;
            let ready =
                nodes.as_array().map_or(0, |nodes| nodes.iter().filter(|node| node["Status"] == "ready").count());
            Ok((ready == count).then_some(()))
        })
    }

    /// Runs a command that stands in the guide, with what the guide leaves to the reader, in capitals, filled in. A job is
    /// also told where the simulated cloud is, which a real one does not need, and what its version of Nomad wants to be told.
    pub fn guide(&mut self, line: &str, filled_in: &[(&str, &str)]) -> StepResult<String> {
        if !self.guide.iter().any(|known| known == line) {
            return Err(format!("the guide does not have the command: {line}").into());
        }
        self.used.insert(line.to_owned());
        let words: Vec<String> = line.split_whitespace().skip(1).map(|word| fill_in(word, filled_in)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["job", "run", arguments @ .., job] => self.run_job(job, arguments),
            ["node", "drain", "-enable", rest @ ..] if self.version < DRAINS_PLUGINS_LAST => {
                self.run(&[&["node", "drain", "-enable", "-ignore-system"], rest].concat())
            }
            words => self.run(words),
        }
    }

    /// Submits a job file of the directory. What it has no variables for is written into it.
    pub fn run_job(&self, job: &str, arguments: &[&str]) -> StepResult<String> {
        let text = fs::read_to_string(self.file(job))?;
        let has = |name: &str| text.contains(&format!("variable \"{name}\""));
        let mut words = vec!["job".to_owned(), "run".to_owned()];
        let mut written = text.clone();
        for argument in arguments {
            match argument.strip_prefix("-var=").and_then(|variable| variable.split_once('=')) {
                Some(("node", node)) if !has("node") => {
                    written = written.replace("NODE_A", node).replace("NODE_B", node);
                }
                Some(("log", level)) if !has("log") => {
                    let with_level = format!("env {{\n        RUST_LOG = \"{level}\"\n      }}\n\n      csi_plugin {{");
                    written = written.replace("csi_plugin {", &with_level);
                }
                Some(_) | None => words.push((*argument).to_owned()),
            }
        }
        if has("api_url") {
            words.push(format!("-var=api_url={}", api_url()));
        } else {
            let url = format!("\"--url={}\", \"--do-tag=", api_url());
            written = written.replace("\"--do-tag=", &url).replace("CLUSTER_NAME", "simulated-cluster");
        }
        if has("datacenters") && self.version < HAS_WILDCARD {
            words.push("-var=datacenters=[\"dc1\"]".to_owned());
        }
        let file = if written == text { job.to_owned() } else { format!("written-{job}") };
        if written != text {
            fs::write(self.file(&file), written)?;
        }
        words.push(file);
        self.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Ends what keeps the claim of a batch job that has ended, on versions where something does.
    pub fn give_back(&self, job: &str) -> StepResult<()> {
        if self.version < FREES_ENDED {
            self.run(&["job", "stop", "-purge", job])?;
        }
        Ok(())
    }

    /// A file of the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Commands of the guide that were never run.
    pub fn unused(&self) -> Vec<String> {
        self.guide.iter().filter(|line| !self.used.contains(*line)).cloned().collect()
    }

    /// Runs `nomad` with these arguments and gives what it printed. Whatever it asks is answered with yes.
    pub fn run(&self, arguments: &[&str]) -> StepResult<String> {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(&self.directory)
            .env("NOMAD_ADDR", format!("http://{CLOUD}:4646"))
            .env("NO_COLOR", "1")
            .env("NOMAD_VAR_owner", "simulated-cluster")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut running = command.spawn()?;
        // Most commands ask nothing and may have ended by now.
        drop(running.stdin.take().map(|mut stdin| stdin.write_all(b"y\n")));
        let output = running.wait_with_output()?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(printed);
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(format!("nomad {}: {}{printed}", arguments.join(" "), complaint.trim()).into())
    }

    /// The same for a command that prints JSON.
    pub fn json(&self, arguments: &[&str]) -> StepResult<Value> {
        Ok(serde_json::from_str(&self.run(arguments)?)?)
    }

    /// What the API answers at a path. The command for it is younger than volumes.
    pub fn api(&self, path: &str) -> StepResult<Value> {
        let mut answer = ureq::get(format!("http://{CLOUD}:4646{path}")).call()?;
        Ok(serde_json::from_str(&answer.body_mut().read_to_string()?)?)
    }

    /// Waits until a look at the cluster gives something.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut() -> StepResult<Option<T>>) -> StepResult<T> {
        let mut last = None;
        let seen = wait_for(PATIENCE, || match look() {
            Ok(seen) => seen,
            Err(err) => {
                last = Some(err.to_string());
                None
            }
        });
        seen.ok_or_else(|| format!("in vain: {what}{}", last.map(|err| format!(" ({err})")).unwrap_or_default()).into())
    }

    /// The id of a client by the name of its droplet.
    pub fn node_id(&self, name: &str) -> StepResult<String> {
        let nodes = self.json(&["node", "status", "-json"])?;
        let nodes = nodes.as_array().ok_or("no nodes")?;
        let node = nodes.iter().find(|node| node["Name"] == name).ok_or("no such node")?;
        Ok(node["ID"].as_str().unwrap_or_default().to_owned())
    }

    /// The newest allocation of a job, whatever became of it.
    pub fn newest_allocation(&self, job: &str) -> StepResult<Option<Value>> {
        let allocations = self.api(&format!("/v1/job/{job}/allocations"))?;
        let newest = allocations.as_array().and_then(|all| all.iter().max_by_key(|one| one["CreateIndex"].as_u64()));
        Ok(newest.cloned())
    }

    /// Waits until the newest allocation of a job is in this state, and gives it.
    pub fn await_status(&self, job: &str, status: &str) -> StepResult<Value> {
        let mut was = String::new();
        self.until(&format!("job {job} is {status}"), || {
            let allocation = self.newest_allocation(job)?;
            let is = allocation.as_ref().and_then(|one| one["ClientStatus"].as_str()).unwrap_or("nothing");
            was = is.to_owned();
            if is == status {
                Ok(allocation)
            } else {
                Err(format!("it is {was}: {}", events(allocation.as_ref())).into())
            }
        })
    }

    /// What an allocation's task has printed.
    pub fn logs(&self, allocation: &Value, task: &str) -> StepResult<String> {
        self.run(&["alloc", "logs", allocation["ID"].as_str().unwrap_or_default(), task])
    }

    /// Ends all agents. Nomad leaves running containers to the engine, which ends them.
    pub fn stop(mut self) -> StepResult<()> {
        for client in self.clients.iter_mut().flatten() {
            end(client)?;
        }
        self.clients.clear();
        end(&mut self.server)
    }
}

impl Drop for Nomad {
    fn drop(&mut self) {
        for agent in self.clients.iter_mut().flatten().chain([&mut self.server]) {
            let _ended = end(agent);
        }
    }
}

/// What happened to an allocation's tasks, for the message of a wait in vain.
pub fn events(allocation: Option<&Value>) -> String {
    let states = allocation.and_then(|one| one["TaskStates"].as_object());
    let events = states.into_iter().flatten().flat_map(|(_, state)| state["Events"].as_array().into_iter().flatten());
    events.filter_map(|event| event["DisplayMessage"].as_str()).collect::<Vec<_>>().join("; ")
}

/// Copies the files of the guide, those that this version takes: what is for older ones is in a directory of its own.
fn copy_files(version: Version, jobs: &Path, directory: &Path) -> StepResult<()> {
    fs::create_dir_all(directory)?;
    for entry in fs::read_dir(jobs)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), directory.join(entry.file_name()))?;
        }
    }
    for (since, name) in [
        (HAS_VARIABLES, "plugin.nomad.hcl"),
        (HAS_DISCONNECT, "postgres.nomad.hcl"),
        (HAS_CREATE, "blog.volume.hcl"),
        (HAS_CREATE, "put-file.nomad.hcl"),
        (HAS_CREATE, "get-file.nomad.hcl"),
    ] {
        if version < since {
            fs::copy(jobs.join("legacy").join(name), directory.join(name))?;
        }
    }
    if version < HAS_DISCONNECT {
        // There is no Consul, as the file says.
        let file = directory.join("postgres.nomad.hcl");
        let text = fs::read_to_string(&file)?;
        fs::write(&file, without_block(&text, "service"))?;
    }
    Ok(())
}

/// A file of a job without a block, which begins and ends with lines of the same depth.
fn without_block(text: &str, name: &str) -> String {
    let mut end = None;
    let mut kept = String::new();
    for line in text.lines() {
        let depth = line.len() - line.trim_start().len();
        match end {
            Some(at) if depth == at && line.trim() == "}" => end = None,
            Some(_) => {}
            None if line.trim() == format!("{name} {{") => end = Some(depth),
            None => {
                kept.push_str(line);
                kept.push('\n');
            }
        }
    }
    kept
}

/// All pages of the guide in a directory, one after the other.
pub fn pages(directory: &Path) -> io::Result<String> {
    let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    let mut pages: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    let texts = pages.iter().map(fs::read_to_string).collect::<io::Result<Vec<_>>>()?;
    Ok(texts.join("\n"))
}

/// The commands of a guide: lines of its code blocks that begin with `nomad `.
pub fn commands(guide: &str) -> Vec<String> {
    let mut is_code = false;
    let mut found = Vec::new();
    for line in guide.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        } else if is_code && line.starts_with("nomad ") {
            let command = line.split(" #").next().unwrap_or_default();
            found.push(command.trim().to_owned());
        }
    }
    found
}

/// Ends an agent. A client does not end while an allocation waits for a volume, so there is a limit to patience.
fn end(agent: &mut Child) -> StepResult<()> {
    send(agent.id(), Signal::SIGTERM)?;
    if wait_for(END_LIMIT, || agent.try_wait().ok().flatten()).is_none() {
        agent.kill()?;
        agent.wait()?;
    }
    Ok(())
}

fn log_of(machine: &Machine) -> PathBuf {
    machine.home().join("nomad.log")
}

/// A word of a command as the shell hands it on: without the quotes around what the guide leaves to the reader.
fn fill_in(word: &str, filled_in: &[(&str, &str)]) -> String {
    let bare = word.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).unwrap_or(word);
    filled_in.iter().fold(bare.to_owned(), |word, (name, value)| word.replace(name, value))
}

fn agent(mut command: Command, config: &Path, log: &Path) -> StepResult<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    command.args(["agent", "-config"]).arg(config);
    // What is set for whoever runs the tests, such as certificates of a proxy, is nothing to a server's agent.
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root");
    Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?)
}

fn server_config(data: &Path) -> String {
    format!(
        r#"
        name      = "server"
        data_dir  = "{}"
        bind_addr = "{CLOUD}"
        log_level = "INFO"
        disable_update_check = true
        leave_on_terminate   = false
        server {{
          enabled          = true
          bootstrap_expect = 1
          # A dead client is noticed in seconds.
          min_heartbeat_ttl        = "2s"
          max_heartbeats_per_second = 10
          heartbeat_grace          = "3s"
        }}
        "#,
        data.display()
    )
}

fn client_config(machine: &Machine) -> StepResult<String> {
    let engine = machine.engine.as_ref().ok_or("a client needs Docker")?;
    Ok(format!(
        r#"
        name      = "{}"
        data_dir  = "{DATA_DIR}"
        bind_addr = "0.0.0.0"
        log_level = "DEBUG"
        disable_update_check = true
        client {{
          enabled           = true
          servers           = ["{CLOUD}:4647"]
          network_interface = "eth0"
          max_kill_timeout  = "2m"
          cpu_total_compute = 4000
          memory_total_mb   = 4096
        }}
        plugin "raw_exec" {{
          config {{
            enabled = true
          }}
        }}
        plugin "docker" {{
          config {{
            endpoint         = "{}"
            allow_privileged = true
            volumes {{
              enabled = true
            }}
            gc {{
              image = false
            }}
          }}
        }}
        "#,
        machine.name,
        engine.address()
    ))
}
