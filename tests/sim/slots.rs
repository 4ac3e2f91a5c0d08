//! SCSI disks of virtual machines: what droplets have that are machines.
//!
//! Owns which volume is which disk of which machine. Links are made by udev in the machine, and nothing is left behind
//! there: a disk that is pulled out is gone, whoever uses it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Result;
use super::device::{Paths, Plug, Slots, lengthen, remove};
use super::qmp::{Disk, Monitor};

/// What the name of a link has before the volume's.
const LINK: &str = "scsi-0DO_Volume_";

/// The disks of all machines of a simulator.
#[derive(Debug)]
pub struct MachineSlots {
    paths: Paths,
    plugged: BTreeMap<String, Plugged>,
    count: u64,
}

#[derive(Debug)]
struct Plugged {
    monitor: Monitor,
    id: String,
    is_half: bool,
}

impl MachineSlots {
    /// None yet.
    pub fn new(paths: Paths) -> MachineSlots {
        MachineSlots { paths, plugged: BTreeMap::new(), count: 0 }
    }
}

impl Slots for MachineSlots {
    fn plug(&mut self, plug: &Plug<'_>) -> Result<()> {
        let is_whole = self.plugged.get(plug.volume).is_some_and(|plugged| !plugged.is_half);
        if is_whole {
            return Ok(());
        }
        self.pull(plug.volume, false)?;
        let (file, is_half) = (self.paths.volume(plug.volume), plug.is_half);
        let file = if is_half { file.with_extension("empty") } else { file };
        if is_half {
            lengthen(&file, 0)?;
        }
        self.count += 1;
        let name = plug.link.strip_prefix(LINK).unwrap_or(plug.link);
        let (monitor, id) = (Monitor::at(&self.paths.monitor(plug.droplet)), format!("volume-{}", self.count));
        monitor.plug(&Disk::volume(&id, &file, name))?;
        if is_half {
            remove(&file)?;
        }
        self.plugged.insert(plug.volume.to_owned(), Plugged { monitor, id, is_half });
        Ok(())
    }

    fn pull(&mut self, volume: &str, _keeps_link: bool) -> Result<Option<PathBuf>> {
        let Some(plugged) = self.plugged.remove(volume) else { return Ok(None) };
        match plugged.monitor.pull(&plugged.id) {
            // A machine whose power was cut has lost its disks with it.
            Err(error) if plugged.monitor.answers() => Err(error),
            Ok(()) | Err(_) => Ok(None),
        }
    }

    fn grow(&mut self, volume: &str, bytes: u64) -> Result<()> {
        self.plugged.get(volume).map_or(Ok(()), |plugged| plugged.monitor.resize(&plugged.id, bytes))
    }

    fn part(&self, _volume: &str) -> Result<()> {
        Ok(())
    }

    fn plugged(&self) -> Vec<String> {
        self.plugged.keys().cloned().collect()
    }
}
