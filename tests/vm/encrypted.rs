//! Encrypted volumes, on disks as DigitalOcean has them and with a device mapper.

use grpcio::RpcStatusCode;

use super::harness::{A, B, GIB, VmHarness, Vol};
use crate::support::client::{Outcome, text_map};
use crate::support::story::{StepResult, ensure};

/// The key of every encrypted volume here.
pub const KEY: &str = "correct horse battery staple";
/// How often a moment may be missed.
const MOST_TRIES: usize = 10;

/// A volume that is to be encrypted, with its key.
pub fn encrypted(mut vol: Vol) -> Vol {
    vol.csi.context = text_map(&[("encrypted", "true")]);
    with_key(&vol, KEY)
}

/// The same with another key.
pub fn with_key(vol: &Vol, key: &str) -> Vol {
    let mut vol = vol.clone();
    vol.csi.secrets = text_map(&[("encryption-passphrase", key)]);
    vol
}

/// The same as a call has it that is not given the key.
pub fn keyless(vol: &Vol) -> Vol {
    let mut vol = vol.clone();
    vol.csi.secrets.clear();
    vol
}

/// An encrypted volume on a machine's disk that no cloud knows, with a file in it, which nothing uses.
pub fn used(yard: &mut VmHarness, name: &str, fs: &str) -> StepResult<Vol> {
    let (vol, disk) = (encrypted(yard.told(name, fs)?), yard.disk(name)?);
    yard.plug(A, &disk)?;
    yard.stage(A, &vol)??;
    yard.publish(A, &vol)?;
    yard.put(A, &vol, "file", "for nobody's eyes")?;
    yard.off(A, &vol)?;
    nothing_is_open(yard, A)?;
    Ok(vol)
}

/// Asserts that an encrypted volume can be used and has its content, and lets go of it.
pub fn is_whole(yard: &mut VmHarness, vol: &Vol) -> StepResult<()> {
    yard.stage(A, vol)??;
    yard.publish(A, vol)?;
    yard.says(A, vol, "file", "for nobody's eyes")?;
    yard.off(A, vol)?;
    nothing_is_open(yard, A)
}

/// Asserts that no encrypted volume is open on a machine.
pub fn nothing_is_open(yard: &VmHarness, at: usize) -> StepResult<()> {
    yard.until(at, "! ls -d /sys/block/dm-*").map(drop)
}

/// From one machine to the other and back, with every file system; grown in use and while it is away.
pub fn life(yard: &mut VmHarness) -> StepResult<()> {
    for fs in ["ext4", "xfs", "btrfs"] {
        let mut vol = encrypted(yard.volume(&format!("secret-{fs}"), fs)?);
        yard.up(A, &mut vol)?;
        yard.put(A, &vol, "file", "for nobody's eyes")?;
        let name = yard.sh(A, "cat /sys/block/dm-*/dm/name")?;
        ensure(name.trim() == format!("do-csi-{}", vol.name), || name)?;
        let (client, target) = (yard.client(A)?, yard.target(A, &vol));
        client.expand(&vol.csi.id, i64::try_from(2 * GIB)?)?;
        let without = client.node_expand(&vol.csi.id, &target, i64::try_from(2 * GIB)?);
        ensure(without.is_err_and(|refusal| refusal.message.contains("without its key")), || "grown".to_owned())?;
        client.node_expand_with(&vol.csi.id, &target, i64::try_from(2 * GIB)?, &[("luksKey", KEY)])?;
        let bytes = yard.machine(A).droplet.file_system_size(&target)?;
        ensure(bytes > 18 * GIB / 10, || format!("{fs} has {bytes} bytes"))?;
        yard.off(A, &vol)?;
        // Unstaging has waited for that.
        yard.sh(A, "! ls -d /sys/block/dm-*")?;
        yard.sh(A, &format!("! head -c 200M {} | grep -qa -e 'nobody.s eyes' -e '{KEY}'", vol.link()))?;
        yard.sh(A, &format!("! grep -F '{KEY}' /var/lib/droplet/plugin.log"))?;
        yard.down(A, &vol)?;

        yard.client(B)?.expand(&vol.csi.id, i64::try_from(3 * GIB)?)?;
        yard.up(B, &mut vol)?;
        yard.says(B, &vol, "file", "for nobody's eyes")?;
        let bytes = yard.machine(B).droplet.file_system_size(&yard.target(B, &vol))?;
        ensure(bytes > 28 * GIB / 10, || format!("{fs} has {bytes} bytes"))?;
        yard.down(B, &vol)?;
        nothing_is_open(yard, B)?;
    }
    Ok(())
}

/// Pulled out by the cloud while it is mounted: the plugin says so and cleans up, the kernel closes what is left, and the
/// same machine uses the disk that comes back.
pub fn pulled(yard: &mut VmHarness) -> StepResult<()> {
    let mut vol = encrypted(yard.volume("pulled-secret", "xfs")?);
    yard.up(A, &mut vol)?;
    yard.put(A, &vol, "synced", "for good")?;
    let droplet = yard.machine(A).id;
    yard.cloud.sim.detach(&vol.csi.id, droplet)?;
    yard.until(A, &format!("! ls {}", vol.link()))?;
    let target = yard.target(A, &vol);
    let condition = yard.client(A)?.stats(&vol.csi.id, &target)?.volume_condition.unwrap_or_default();
    ensure(condition.abnormal, || format!("the volume is said to be well: {}", condition.message))?;
    // A task that does not end keeps the dead one open; the volume comes back beside it.
    yard.sh(A, &format!("cd {} && (setsid sleep 1000 >/dev/null 2>&1 &)", target.display()))?;
    yard.off(A, &vol)?;
    yard.up(A, &mut vol)?;
    yard.says(A, &vol, "synced", "for good")?;
    let names = yard.sh(A, "cat /sys/block/dm-*/dm/name")?;
    ensure(names.lines().count() == 2, || names)?;
    yard.sh(A, "pkill -x sleep")?;
    yard.until(A, "ls -d /sys/block/dm-* | wc -l | grep -x 1")?;
    yard.down(A, &vol)?;
    nothing_is_open(yard, A)
}

/// Killed in the middle of making an encrypted volume, right after it was opened, and while the file system is made in it, with
/// the tool that is at work, as a container is. What is left open is closed by the plugin that starts next, and the volume is
/// finished by the next call.
pub fn killed(yard: &mut VmHarness) -> StepResult<()> {
    let vol = encrypted(yard.told("killed-secret", "ext4")?);
    let disk = yard.disk("killed-secret")?;
    yard.plug(A, &disk)?;
    for moment in ["pgrep -f '^/usr/sbin/cryptsetup luksFormat'", "ls -d /sys/block/dm-*", "pgrep -x mke2fs"] {
        let mut tries = 0..MOST_TRIES;
        while !is_killed_at(yard, &vol, moment)? {
            // The call was over before the moment was seen.
            tries.next().ok_or_else(|| format!("never killed at: {moment}"))?;
            yard.off(A, &vol)?;
            clear(yard, &vol)?;
        }
        yard.restart(A)?;
        nothing_is_open(yard, A)?;
        yard.stage(A, &vol)??;
        yard.publish(A, &vol)?;
        yard.put(A, &vol, "file", "content")?;
        yard.off(A, &vol)?;
        nothing_is_open(yard, A)?;
        clear(yard, &vol)?;
    }
    Ok(())
}

/// Several at once, over and over: each is opened while others are closed, and the closing of what was left open looks at all.
pub fn storm(yard: &mut VmHarness) -> StepResult<()> {
    let mut vols = Vec::new();
    for (name, fs) in [("storm-ext4", "ext4"), ("storm-xfs", "xfs"), ("storm-btrfs", "btrfs")] {
        let (vol, disk) = (encrypted(yard.told(name, fs)?), yard.disk(name)?);
        yard.plug(A, &disk)?;
        yard.machine(A).prepare(&yard.staging(A, &vol), &yard.target(A, &vol))?;
        vols.push(vol);
    }
    let client = yard.client(A)?;
    let rounds = |vol: &Vol| -> Result<(), String> {
        let (staging, target) = (yard.staging(A, vol), yard.target(A, vol));
        let failed = |err: &dyn std::fmt::Display| format!("{}: {err}", vol.name);
        for round in 0..4 {
            // An emulated machine may take more than one call's time to make three volumes; the next call goes on.
            let late = |outcome: &Outcome<()>| {
                outcome.as_ref().is_err_and(|refusal| refusal.code == RpcStatusCode::DEADLINE_EXCEEDED)
            };
            let mut tries = (0..4).map(|_| client.stage(&vol.csi, &staging)).skip_while(late);
            tries.next().ok_or_else(|| failed(&"too slow for four calls"))?.map_err(|err| failed(&err))?;
            client.publish(&vol.csi, &staging, &target, false).map_err(|err| failed(&err))?;
            if round > 0 {
                yard.says(A, vol, "file", &format!("round {}", round - 1)).map_err(|err| failed(&err))?;
            }
            yard.put(A, vol, "file", &format!("round {round}")).map_err(|err| failed(&err))?;
            client.unpublish(&vol.csi.id, &target).map_err(|err| failed(&err))?;
            client.unstage(&vol.csi.id, &staging).map_err(|err| failed(&err))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| -> StepResult<()> {
        let threads: Vec<_> = vols.iter().map(|vol| scope.spawn(|| rounds(vol))).collect();
        for thread in threads {
            thread.join().map_err(|_| "a call panicked")??;
        }
        Ok(())
    })?;
    nothing_is_open(yard, A)
}

/// Makes a volume's disk blank.
fn clear(yard: &VmHarness, vol: &Vol) -> StepResult<()> {
    yard.sh(A, &format!("wipefs -aq {0} && blkdiscard -z {0}", vol.link())).map(drop)
}

/// Stages a volume and kills the plugin as soon as a script succeeds; tells whether that was before the call was over.
fn is_killed_at(yard: &mut VmHarness, vol: &Vol, moment: &str) -> StepResult<bool> {
    let (client, staging) = (yard.client(A)?, yard.staging(A, vol));
    yard.machine(A).prepare(&staging, &yard.target(A, vol))?;
    let pid = yard.plugin_pid(A)?;
    std::thread::scope(|scope| {
        let stage = scope.spawn(|| client.stage(&vol.csi, &staging));
        let is_over = format!("mountpoint -q {}", staging.display());
        let kill = format!("kill -9 {pid} $(pgrep -x 'cryptsetup|mke2fs')");
        yard.sh(A, &format!("until {moment} >/dev/null; do ! {is_over} || exit 0; done; {kill}"))?;
        Ok(stage.join().map_err(|_| "the call panicked")?.is_err())
    })
}
