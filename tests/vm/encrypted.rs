//! Encrypted volumes, on disks as DigitalOcean has them and with a device mapper.

use super::yard::{A, B, GIB, Vol, Yard};
use crate::support::client::text_map;
use crate::support::story::{Told, ensure};

const KEY: &str = "correct horse battery staple";

fn encrypted(mut vol: Vol) -> Vol {
    vol.csi.context = text_map(&[("encrypted", "true")]);
    vol.csi.secrets = text_map(&[("encryption-passphrase", KEY)]);
    vol
}

/// Asserts that no encrypted volume is open on a machine.
fn nothing_is_open(yard: &Yard, at: usize) -> Told<()> {
    yard.until(at, "! ls -d /sys/block/dm-*").map(drop)
}

/// From one machine to the other and back, with every file system; grown in use and while it is away.
pub fn life(yard: &mut Yard) -> Told<()> {
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
        nothing_is_open(yard, A)?;
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
pub fn pulled(yard: &mut Yard) -> Told<()> {
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

/// Killed in the middle of making an encrypted volume, and right after it was opened.
pub fn killed(yard: &mut Yard) -> Told<()> {
    let (vol, disk) = (yard.told("killed-secret", "ext4")?, yard.disk("killed-secret")?);
    let vol = encrypted(vol);
    yard.plug(A, &disk)?;
    for moment in ["pgrep -f '^/usr/sbin/cryptsetup luksFormat'", "ls -d /sys/block/dm-*", "pgrep -x mke2fs"] {
        let (client, staging) = (yard.client(A)?, yard.staging(A, &vol));
        yard.machine(A).prepare(&staging, &yard.target(A, &vol))?;
        std::thread::scope(|scope| -> Told<()> {
            let stage = scope.spawn(|| client.stage(&vol.csi, &staging));
            // A moment that is too short to be seen must not be waited for for ever.
            let is_over = "[ $((count += 1)) -gt 300 ]";
            let pid = yard.plugin_pid(A)?;
            let script = format!("count=0; until {moment} >/dev/null || {is_over}; do :; done; kill -9 {pid}");
            yard.sh(A, &script)?;
            // Whether the call came to its end before is no matter.
            stage.join().map(drop).map_err(|_| "the call panicked".into())
        })?;
        yard.until(A, "! pgrep -x 'cryptsetup|mke2fs'")?;
        yard.restart(A)?;
        yard.stage(A, &vol)??;
        yard.publish(A, &vol)?;
        yard.put(A, &vol, "file", "content")?;
        yard.off(A, &vol)?;
        nothing_is_open(yard, A)?;
        yard.sh(A, &format!("wipefs -aq {0} && blkdiscard -z {0}", vol.link()))?;
    }
    Ok(())
}
