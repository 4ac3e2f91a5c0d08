//! A real Nomad: one server, a client on every droplet, and its command line, as an operator uses it.
//!
//! Owns the agents' processes and settings. Every command that is run through [`Nomad::guide`] stands in the guide, word
//! for word, and [`Nomad::unused`] tells which commands of the guide were never run.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
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

/// A running cluster.
#[derive(Debug)]
pub struct Nomad {
    program: PathBuf,
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
        fs::create_dir_all(directory)?;
        for entry in fs::read_dir(jobs)? {
            let entry = entry?;
            // Files for versions that are not played are in a directory of their own.
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), directory.join(entry.file_name()))?;
            }
        }
        let data = root.join("server");
        fs::create_dir_all(&data)?;
        let config = data.join("server.hcl");
        fs::write(&config, server_config(&data))?;
        let server = agent(Command::new(program), &config, &data.join("log"))?;
        let mut nomad = Nomad {
            program: program.to_owned(),
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
        let script = format!("{is_there} || {{ mount -t tmpfs nomad /opt && mkdir -p {DATA_DIR}; }}");
        let status = machine.droplet.command(Path::new("sh")).args(["-c", &script]).status()?;
        if !status.success() {
            return Err("the client's directory cannot be made".into());
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
    /// also told where the simulated cloud is, which a real one does not need.
    pub fn guide(&mut self, line: &str, filled_in: &[(&str, &str)]) -> StepResult<String> {
        if !self.guide.iter().any(|known| known == line) {
            return Err(format!("the guide does not have the command: {line}").into());
        }
        self.used.insert(line.to_owned());
        let words: Vec<String> = line.split_whitespace().skip(1).map(|word| fill_in(word, filled_in)).collect();
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        let api_url = format!("-var=api_url={}", api_url());
        if words.starts_with(&["job", "run"]) && self.asks_for_url(words.last().copied().unwrap_or_default()) {
            words.insert(2, &api_url);
        }
        self.run(&words)
    }

    fn asks_for_url(&self, job: &str) -> bool {
        fs::read_to_string(self.directory.join(job)).is_ok_and(|text| text.contains("variable \"api_url\""))
    }

    /// A file of the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Commands of the guide that were never run.
    pub fn unused(&self) -> Vec<String> {
        self.guide.iter().filter(|line| !self.used.contains(*line)).cloned().collect()
    }

    /// Runs `nomad` with these arguments and gives what it printed.
    pub fn run(&self, arguments: &[&str]) -> StepResult<String> {
        let output = Command::new(&self.program)
            .args(arguments)
            .current_dir(&self.directory)
            .env("NOMAD_ADDR", format!("http://{CLOUD}:4646"))
            .env("NO_COLOR", "1")
            .env("NOMAD_VAR_owner", "simulated-cluster")
            .output()?;
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

    /// What the API answers at a path.
    pub fn api(&self, path: &str) -> StepResult<Value> {
        self.json(&["operator", "api", path])
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
