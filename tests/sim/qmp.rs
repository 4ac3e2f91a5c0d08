//! Disks of virtual machines, plugged in and pulled out while they run, through QEMU's monitor.
//!
//! Owns the monitor's language, QMP: one JSON object a line. A connection is made for each piece of work, so a machine
//! whose power was cut is one that does not answer, and needs no other care.
//! Source: "QEMU QMP Reference Manual"; `hw/scsi/scsi-disk.c` for the properties of a disk.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Result, SimError};

/// QEMU answers at once, except while it flushes a disk that is pulled out.
const LIMIT: Duration = Duration::from_secs(60);
/// The unit serial number of a volume ends here; its name in the other page does not.
const SERIAL_LIMIT: usize = 36;

/// A SCSI disk as a machine is to see it.
#[derive(Debug, Clone)]
pub struct Disk {
    /// What it is called in QEMU: a letter, then letters, digits and dashes, 25 characters at most.
    pub id: String,
    /// The file with its bytes.
    pub file: PathBuf,
    /// Who made it.
    pub vendor: String,
    /// Its model.
    pub product: String,
    /// The name in its pages.
    pub name: String,
    /// The controller that it is on.
    pub bus: Bus,
    /// How many requests it answers in a second; none: as fast as it goes.
    pub requests: Option<u64>,
}

/// The controllers of a machine, by what they tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// That a disk has got another size, too.
    Telling,
    /// Nothing of a disk's size: the machine has to ask.
    Silent,
}

impl Bus {
    fn name(self) -> &'static str {
        match self {
            Bus::Telling => "scsi0.0",
            Bus::Silent => "scsi1.0",
        }
    }
}

/// The controllers as arguments of QEMU.
pub const CONTROLLERS: [&str; 4] =
    ["-device", "virtio-scsi-pci,id=scsi0", "-device", "virtio-scsi-pci,id=scsi1,param_change=off"];

impl Disk {
    /// A disk as DigitalOcean makes them.
    pub fn volume(id: &str, file: &Path, name: &str) -> Disk {
        let (vendor, product) = ("DO".to_owned(), "Volume".to_owned());
        let (id, file, name) = (id.to_owned(), file.to_owned(), name.to_owned());
        Disk { id, file, vendor, product, name, bus: Bus::Telling, requests: None }
    }
}

/// The monitor of a machine.
#[derive(Debug, Clone)]
pub struct Monitor(PathBuf);

impl Monitor {
    /// The monitor that listens at this socket, now or later.
    pub fn at(socket: &Path) -> Monitor {
        Monitor(socket.to_owned())
    }

    /// Whether the machine runs.
    pub fn answers(&self) -> bool {
        self.execute("query-status", &json!({})).is_ok()
    }

    /// Lets the machine see a disk.
    ///
    /// # Errors
    /// The machine does not run, or QEMU refuses.
    pub fn plug(&self, disk: &Disk) -> Result<()> {
        let raw = json!({ "driver": "raw", "file": { "driver": "file", "filename": disk.file } });
        let mut tree = match disk.requests {
            None => raw,
            Some(_) => json!({ "driver": "throttle", "throttle-group": group(&disk.id), "file": raw }),
        };
        tree["node-name"] = node(&disk.id).into();
        if let Some(requests) = disk.requests {
            let limits = json!({ "iops-total": requests });
            let object = json!({ "qom-type": "throttle-group", "id": group(&disk.id), "limits": limits });
            self.execute("object-add", &object)?;
        }
        self.execute("blockdev-add", &tree)?;
        let serial: String = disk.name.chars().take(SERIAL_LIMIT).collect();
        let device = json!({
            "driver": "scsi-hd", "bus": disk.bus.name(), "drive": node(&disk.id), "id": disk.id,
            "vendor": disk.vendor, "product": disk.product, "serial": serial, "device_id": disk.name,
        });
        self.execute("device_add", &device).map(drop)
    }

    /// Pulls a disk out, whatever the machine does with it.
    ///
    /// # Errors
    /// As [`Monitor::plug`].
    pub fn pull(&self, id: &str) -> Result<()> {
        // The file is let go of when the device has ended, which is a little later.
        self.execute_until(Some(id), "device_del", &json!({ "id": id }))?;
        self.execute("blockdev-del", &json!({ "node-name": node(id) })).map(drop)
    }

    /// Gives a disk another size; its file gets longer if it has to.
    ///
    /// # Errors
    /// As [`Monitor::plug`].
    pub fn resize(&self, id: &str, bytes: u64) -> Result<()> {
        self.execute("block_resize", &json!({ "node-name": node(id), "size": bytes })).map(drop)
    }

    /// Asks the older, human monitor, which knows a few things that this one does not.
    ///
    /// # Errors
    /// The machine does not run.
    pub fn ask(&self, question: &str) -> Result<String> {
        let answer = self.execute("human-monitor-command", &json!({ "command-line": question }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    fn execute(&self, command: &str, arguments: &Value) -> Result<Value> {
        self.execute_until(None, command, arguments)
    }

    /// Executes a command and waits for its answer, and for the end of a device if one is named.
    fn execute_until(&self, ended: Option<&str>, command: &str, arguments: &Value) -> Result<Value> {
        self.converse(ended, command, arguments)
            .map_err(|error| SimError::io(&format!("{command} of"), &self.0, &error))?
            .map_err(|refusal| SimError::new(format!("QEMU refuses {command} {arguments}: {refusal}")))
    }

    fn converse(
        &self,
        ended: Option<&str>,
        command: &str,
        arguments: &Value,
    ) -> std::io::Result<std::result::Result<Value, String>> {
        let stream = UnixStream::connect(&self.0)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let say = |text: Value| (&stream).write_all(format!("{text}\n").as_bytes());
        say(json!({ "execute": "qmp_capabilities" }))?;
        say(json!({ "execute": command, "arguments": arguments, "id": command }))?;
        let (mut answer, mut is_over) = (None, ended.is_none());
        // A greeting, the answer to the first line, and events come before or between.
        loop {
            let line = lines.next().ok_or(std::io::ErrorKind::UnexpectedEof)??;
            let said: Value = serde_json::from_str(&line)?;
            if said["id"] == command {
                match said.get("return") {
                    Some(value) => answer = Some(value.clone()),
                    None => return Ok(Err(said["error"]["desc"].to_string())),
                }
            }
            is_over |= said["event"] == "DEVICE_DELETED" && said["data"]["device"].as_str() == ended;
            if let (Some(answer), true) = (&answer, is_over) {
                return Ok(Ok(answer.clone()));
            }
        }
    }
}

fn node(id: &str) -> String {
    format!("{id}-node")
}

fn group(id: &str) -> String {
    format!("{id}-limit")
}
