//! The demo, the bench and the served cloud, with the built plugin on a simulated DigitalOcean. The demo plays the story
//! of a volume and shows each step and its proof; the bench prints how fast volumes are attached, moved and shared, and
//! what that costs; `serve` keeps the cloud up, with the plugin on one droplet, for whatever else speaks CSI.
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
use support::cloud::{Cloud, Machine};
use support::figures::Figures;
use support::story::{self, Listener};

/// How long an attach, detach or resize takes in the demo.
const ACTION_TIME: Duration = Duration::from_millis(1300);
/// How long one takes while serving: test suites make hundreds.
const SERVED_ACTION_TIME: Duration = Duration::from_millis(50);
/// The request limits while serving: far above what DigitalOcean allows, as a suite sends an hour's calls in a minute.
const SERVED_REQUESTS: usize = 1_000_000;

const USAGE: &str = "usage: do-sim demo|bench PLUGIN\n       do-sim serve PLUGIN [COMMAND [ARGUMENT...]]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["demo", program] => demo(Path::new(program)).map(|()| ExitCode::SUCCESS),
        ["bench", program] => bench(Path::new(program)).map(|()| ExitCode::SUCCESS),
        ["serve", program, command @ ..] => serve(Path::new(program), command),
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
    let told = story::tell(&cloud, &program, &mut screen);
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
    Ok(())
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
fn environment(cloud: &Cloud, machine: &Machine) -> [(&'static str, String); 5] {
    let home = machine.home().display().to_string();
    [
        ("CSI_ENDPOINT", format!("unix://{}", machine.socket().display())),
        ("DIGITALOCEAN_API_URL", cloud.sim.api_url()),
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

    fn is_tired(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
