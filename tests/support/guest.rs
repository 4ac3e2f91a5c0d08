//! A droplet as a virtual machine, in QEMU: booted, talked to, cut off from power.
//!
//! Owns the machine's process and the doors into it. Two ports of the machine are reached through its network: behind one
//! is a shell, behind the other the plugin's socket. Its metadata service is where a droplet has it, and what it prints on
//! its serial line is kept in a file.

use std::fs::{self, File};
use std::io::{Error, Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{status_kb, wait_for};
use crate::sim::qmp::{CONTROLLERS, Monitor};

/// How long a boot may take: on a busy machine without hardware to help, many times what it takes on one with it.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long one with the help of hardware may take, which is sometimes offered but does not work.
const KVM_BOOT_LIMIT: Duration = Duration::from_secs(25);
/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(100);
/// Where the network that a machine sees has this machine.
const HOST: &str = "169.254.169.1";
const SHELL_PORT: u16 = 1;
const SOCKET_PORT: u16 = 2;

/// The program's name on the disk that it is brought in with.
const PROGRAM: &str = "/program/do-csi-plugin";

/// How the processor of machines is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor of this machine.
    Kvm,
    /// By QEMU alone.
    Emulation,
}

impl Accelerator {
    fn as_argument(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            // By default it may keep a gigabyte of translated code.
            Accelerator::Emulation => "tcg,tb-size=128",
        }
    }
}

/// What machines boot from.
#[derive(Debug, Clone)]
pub struct Images {
    /// The directory with kernel, initramfs and root, as `tests/vm/image` makes it.
    pub base: PathBuf,
    /// The image of the disk with the program and the first script.
    pub program: PathBuf,
}

impl Images {
    /// Makes the disk with this program in a directory.
    pub fn make(base: &Path, program: &Path, directory: &Path) -> Result<Images> {
        let (content, image) = (directory.join("program"), directory.join("program.ext4"));
        fs::create_dir_all(&content)?;
        fs::copy(program, content.join("do-csi-plugin"))?;
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/guest"), content.join("init"))?;
        let megabytes = fs::metadata(program)?.len() / 1_000_000 + 8;
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&content).arg(&image);
        let output = command.arg(format!("{megabytes}M")).output()?;
        fs::remove_dir_all(&content)?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(Error::other(format!("mke2fs: {complaint}"))) }?;
        Ok(Images { base: base.to_owned(), program: image })
    }
}

/// What is special about one machine.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its host name.
    pub name: String,
    /// Where its monitor listens.
    pub monitor: PathBuf,
    /// Where its serial line is written; added to at each boot.
    pub serial: PathBuf,
    /// The address and port of its metadata service on this machine.
    pub metadata: SocketAddr,
    /// From which address it asks there.
    pub address: std::net::IpAddr,
}

/// A machine, running or without power.
#[derive(Debug)]
pub struct Guest {
    spec: Spec,
    images: Images,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    process: Process,
    accelerator: Accelerator,
    /// None: it is still booting.
    doors: Option<Doors>,
}

/// Where the shell and the plugin's socket are reached.
#[derive(Debug, Clone, Copy)]
struct Doors {
    shell: SocketAddr,
    socket: SocketAddr,
}

impl Guest {
    /// A machine without power.
    pub fn new(spec: Spec, images: &Images) -> Guest {
        Guest { spec, images: images.clone(), running: Mutex::new(None) }
    }

    /// The URL of a port of this machine, as the guest has to write it.
    pub fn url(port: u16) -> String {
        format!("http://{HOST}:{port}/")
    }

    /// Its monitor.
    pub fn monitor(&self) -> Monitor {
        Monitor::at(&self.spec.monitor)
    }

    /// What it has printed on its serial line.
    pub fn serial(&self) -> &Path {
        &self.spec.serial
    }

    /// Gives it power. `words` are added to the kernel's command line. The machine ends with the thread that calls this.
    pub fn power_on(&self, accelerator: Accelerator, words: &str) -> Result<()> {
        let process = Process(self.qemu(accelerator, words)?);
        *self.running() = Some(Running { process, accelerator, doors: None });
        Ok(())
    }

    /// Waits until its shell answers.
    pub fn await_up(&self) -> Result<()> {
        let accelerator = self.running().as_ref().map(|running| running.accelerator);
        let limit = if accelerator == Some(Accelerator::Kvm) { KVM_BOOT_LIMIT } else { BOOT_LIMIT };
        let has_ended = || {
            let mut running = self.running();
            running.as_mut().is_none_or(|running| running.process.0.try_wait().is_ok_and(|status| status.is_some()))
        };
        let up = wait_for(limit, || {
            if has_ended() {
                return Some(Err(Error::other("QEMU has ended")));
            }
            let doors = self.doors()?;
            ask(doors.shell, "true", limit).is_ok().then_some(Ok(doors))
        });
        let up = up.unwrap_or_else(|| Err(Error::other(format!("no answer after {} s", limit.as_secs()))));
        match up {
            Ok(doors) => {
                self.running().iter_mut().for_each(|running| running.doors = Some(doors));
                Ok(())
            }
            Err(error) => {
                self.cut_power();
                Err(self.with_serial(&error))
            }
        }
    }

    /// Ends it as a power cut does: whatever it had not written to a disk is lost.
    pub fn cut_power(&self) {
        drop(self.running().take());
    }

    /// The most memory that it has taken since it has power, in kB.
    pub fn peak_memory_kb(&self) -> Option<u64> {
        status_kb(self.running().as_ref()?.process.0.id(), "VmHWM:")
    }

    /// Where the plugin's socket is reached.
    pub fn socket(&self) -> Result<SocketAddr> {
        Ok(self.open_doors()?.socket)
    }

    /// Runs a script that must succeed, and gives what it prints.
    pub fn run(&self, script: &str) -> Result<String> {
        self.run_within(script, COMMAND_LIMIT)
    }

    /// The same for one that may take as long as this.
    pub fn run_within(&self, script: &str, limit: Duration) -> Result<String> {
        ask(self.open_doors()?.shell, script, limit)
            .map_err(|error| Error::other(format!("{}: {script}: {error}", self.spec.name)))
    }

    /// Starts the program with these arguments, its log added to a file, and gives its process id.
    pub fn start(&self, arguments: &[String], token: &str, log: &Path) -> Result<u32> {
        let arguments: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
        let (arguments, log) = (arguments.join(" "), log.display());
        let variable = format!("export DIGITALOCEAN_ACCESS_TOKEN={}", quoted(token));
        let printed = self.run(&format!("{variable}; setsid {PROGRAM} {arguments} >>{log} 2>&1 & echo $!"))?;
        printed.trim().parse().map_err(Error::other)
    }

    fn open_doors(&self) -> Result<Doors> {
        self.running().as_ref().and_then(|running| running.doors).ok_or_else(|| Error::other("the machine is not up"))
    }

    fn qemu(&self, accelerator: Accelerator, words: &str) -> Result<Child> {
        let base = &self.images.base;
        let (name, address, metadata) = (&self.spec.name, self.spec.address, self.spec.metadata);
        // The metadata service knows a droplet by the address from which it asks.
        let service = format!("socat - TCP:{metadata},,bind={address}");
        let door = |port: u16| format!("hostfwd=tcp:127.0.0.1:0-169.254.169.15:{port}");
        let network = format!(
            "user,id=net0,net=169.254.169.0/24,host={HOST},dns=169.254.169.3,dhcpstart=169.254.169.16,{},{},\
             guestfwd=tcp:169.254.169.254:80-cmd:{service}",
            door(SHELL_PORT),
            door(SOCKET_PORT)
        );
        let drive = |file: &Path, option: &str| format!("file={},format=raw,if=virtio,{option}", file.display());
        let serial = File::options().create(true).append(true).open(&self.spec.serial)?;
        drop(fs::remove_file(&self.spec.monitor));
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-accel", accelerator.as_argument(), "-cpu", "max", "-m", "512"])
            .args(["-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(base.join("vmlinuz"))
            .arg("-initrd")
            .arg(base.join("initrd"))
            .arg("-append")
            .arg(format!("console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on droplet={name} {words}"))
            // What is written to the root is forgotten with the machine.
            .args(["-drive", &drive(&base.join("root.ext4"), "snapshot=on")])
            .args(["-drive", &drive(&self.images.program, "readonly=on")])
            .args(CONTROLLERS)
            .args(["-netdev", &network, "-device", "virtio-net-pci,netdev=net0,romfile="])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", self.spec.monitor.display())])
            .stdin(Stdio::null())
            .stdout(serial.try_clone()?)
            .stderr(serial)
            .spawn()
    }

    /// Where the shell and the plugin's socket are reached, once QEMU tells: the ports are chosen by the kernel.
    fn doors(&self) -> Option<Doors> {
        let table = self.monitor().ask("info usernet").ok()?;
        let door = |inside: u16| {
            table.lines().find_map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let [state, _, "127.0.0.1", port, _, to, ..] = fields.as_slice() else { return None };
                (state.starts_with("TCP[HOST_FORWARD") && *to == inside.to_string())
                    .then(|| port.parse().ok().map(|port: u16| SocketAddr::from(([127, 0, 0, 1], port))))?
            })
        };
        Some(Doors { shell: door(SHELL_PORT)?, socket: door(SOCKET_PORT)? })
    }

    fn with_serial(&self, error: &Error) -> Error {
        let text = fs::read_to_string(&self.spec.serial).unwrap_or_default();
        let last: Vec<&str> = text.lines().rev().take(20).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        Error::other(format!("{} does not boot: {error}\n{}", self.spec.name, last.join("\n")))
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A machine's process, killed when nobody has it any more.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Runs a script in the shell behind a port and gives what it printed.
fn ask(shell: SocketAddr, script: &str, limit: Duration) -> Result<String> {
    const END: &str = "\u{4}ended with ";
    let mut stream = TcpStream::connect(shell)?;
    stream.set_read_timeout(Some(limit))?;
    // In a shell of its own, so that one that exits or cannot be parsed ends with a status too.
    let line = format!("exec 2>&1; sh -c {} </dev/null; printf '{END}%s' \"$?\"; exit\n", quoted(script));
    stream.write_all(line.as_bytes())?;
    let mut printed = Vec::new();
    stream.read_to_end(&mut printed)?;
    drop(stream.shutdown(Shutdown::Both));
    let printed = String::from_utf8_lossy(&printed);
    match printed.rsplit_once(END) {
        Some((text, "0")) => Ok(text.to_owned()),
        Some((text, status)) => Err(Error::other(format!("status {status}: {}", text.trim()))),
        None => Err(Error::other(format!("cut off after {:?}", printed.trim()))),
    }
}

/// A word as a shell takes it literally.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
