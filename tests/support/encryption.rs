//! Whether the plugin's own cryptsetup works, with all its libraries: seen from outside, by another cryptsetup.
//!
//! Owns nothing but the look. The life of encrypted volumes is played on virtual machines, which have a device mapper.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::client::{Client, Volume, text_map};
use super::cloud::{Cloud, Machine};
use super::story::{StepResult, ensure};
use crate::sim::NewVolume;

const KEY: &str = "correct horse battery staple";

/// Has a plugin make an encrypted volume on a droplet, and opens it with this machine's cryptsetup; says what was seen.
/// Where the kernel has no device mapper, the plugin's cryptsetup must say so, and the disk stays blank.
pub fn is_made(cloud: &Cloud, machine: &Machine, client: &Client) -> StepResult<String> {
    let id = cloud.sim.add_volume(&NewVolume::new("secret", 1, "fra1"))?;
    let mut volume = Volume::mounted(&id, "ext4");
    volume.context = text_map(&[("encrypted", "true")]);
    volume.secrets = text_map(&[("encryption-passphrase", KEY)]);
    let (staging, target) = (machine.staging("secret"), machine.target("secret", "secret"));
    machine.prepare(&staging, &target)?;
    client.controller_publish(&mut volume, &machine.node_id())?;
    let staged = client.stage(&volume, &staging);
    let disk = cloud.sim.backing_file(&id);
    let seen = if Path::new("/sys/class/misc/device-mapper").exists() {
        staged?;
        ensure(opens(&disk, KEY)? && !opens(&disk, "another")?, || "its key does not open the volume".to_owned())?;
        "made, opened and mounted"
    } else {
        let refusal = staged.err().ok_or("opened without a device mapper")?;
        ensure(refusal.message.contains("device-mapper"), || refusal.to_string())?;
        ensure(is_blank(&disk)?, || "something was written to the disk".to_owned())?;
        "not made, as this kernel has no device mapper"
    };
    client.unstage(&id, &staging)?;
    client.controller_unpublish(&id, &machine.node_id())?;
    Ok(format!("encrypted volume: {seen}"))
}

/// Whether there is nothing where an encrypted volume begins.
fn is_blank(file: &Path) -> StepResult<bool> {
    let mut head = Vec::new();
    File::open(file)?.take(32 << 20).read_to_end(&mut head)?;
    Ok(head.iter().all(|byte| *byte == 0))
}

/// Whether a key opens the encrypted volume in a file.
fn opens(file: &Path, key: &str) -> StepResult<bool> {
    let mut child = Command::new("cryptsetup")
        .args(["open", "--type", "luks2", "--test-passphrase", "--key-file=-"])
        .arg(file)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    child.stdin.take().ok_or("no standard input")?.write_all(key.as_bytes())?;
    match child.wait()?.code() {
        Some(0) => Ok(true),
        Some(2) => Ok(false),
        other => Err(format!("cryptsetup ended with {other:?} on {}", file.display()).into()),
    }
}
