//! Encrypted volumes that cannot be opened as they are: with another key or none, with a damaged head, in somebody's hands,
//! half made, or left open.

use std::time::Instant;

use grpcio::RpcStatusCode;

use super::encrypted::{KEY, encrypted, is_whole, keyless, nothing_is_open, used, with_key};
use super::harness::{A, GIB, VmHarness, Vol, refused};
use crate::support::story::{StepResult, ensure};

const MIB: u64 = 1 << 20;

/// The sum of what is on a volume's disk as far as the head of an encrypted volume reaches, and a little of its data.
fn sum(yard: &VmHarness, vol: &Vol) -> StepResult<String> {
    yard.sh(A, &format!("head -c 20M {} | sha256sum", vol.link()))
}

/// Asserts that staging a volume is refused, which writes nothing and leaves nothing open or mounted.
fn is_refused(yard: &mut VmHarness, vol: &Vol, code: RpcStatusCode, words: &[&str]) -> StepResult<()> {
    let before = sum(yard, vol)?;
    refused(yard.stage(A, vol)?, code, words)?;
    nothing_is_open(yard, A)?;
    yard.has_no_mounts(A)?;
    ensure(sum(yard, vol)? == before, || "the disk was written to".to_owned())
}

/// Wrong keys, and keys that come late or not at all.
pub fn keys(yard: &mut VmHarness) -> StepResult<()> {
    let mut vol = encrypted(yard.volume("keys", "ext4")?);
    let (droplet, target) = (yard.machine(A).node_id(), yard.target(A, &vol));
    yard.up(A, &mut vol)?;
    yard.put(A, &vol, "file", "for nobody's eyes")?;
    // Open already, so whoever has no key is served as well, and one that does not fit is not tried.
    yard.stage(A, &keyless(&vol))??;
    yard.publish(A, &keyless(&vol))?;
    // Growing is the one thing for which the kernel has it no more.
    let client = yard.client(A)?;
    let bytes = i64::try_from(2 * GIB)?;
    client.expand(&vol.csi.id, bytes)?;
    let wrong = client.node_expand_with(&vol.csi.id, &target, bytes, &[("luksKey", "another")]);
    refused(wrong, RpcStatusCode::INVALID_ARGUMENT, &["does not open"])?;
    yard.says(A, &vol, "file", "for nobody's eyes")?;
    client.node_expand_with(&vol.csi.id, &target, bytes, &[("luksKey", KEY)])?;
    yard.off(A, &vol)?;
    nothing_is_open(yard, A)?;

    for wrong in ["another", &format!("{KEY}\n"), &KEY[1..]] {
        is_refused(
            yard,
            &with_key(&vol, wrong),
            RpcStatusCode::INVALID_ARGUMENT,
            &["does not open", "whose header is whole"],
        )?;
    }
    let mut clear = keyless(&vol);
    clear.csi.context.clear();
    is_refused(yard, &clear, RpcStatusCode::FAILED_PRECONDITION, &["encrypted"])?;
    // As an orchestrator does it that has the key for publishing only.
    yard.stage(A, &keyless(&vol))??;
    nothing_is_open(yard, A)?;
    let staging = yard.staging(A, &vol);
    for (vol, code, words) in [
        (keyless(&vol), RpcStatusCode::FAILED_PRECONDITION, "encryption-passphrase"),
        (with_key(&vol, "another"), RpcStatusCode::INVALID_ARGUMENT, "does not open"),
    ] {
        refused(client.publish(&vol.csi, &staging, &target, false), code, &[words])?;
        yard.has_no_mounts(A)?;
    }
    yard.publish(A, &vol)?;
    yard.says(A, &vol, "file", "for nobody's eyes")?;
    yard.off(A, &vol)?;
    nothing_is_open(yard, A)?;
    ensure(!yard.sh(A, "cat /var/lib/droplet/plugin.log")?.contains("another"), || "a key is in the log".to_owned())?;
    Ok(client.controller_unpublish(&vol.csi.id, &droplet)?)
}

/// A head of which one copy is spoilt, both are, the key slots are, and one that is gone. Each time the message says what to
/// do, and that helps.
pub fn damaged(yard: &mut VmHarness) -> StepResult<()> {
    let vol = used(yard, "damaged", "xfs")?;
    let (disk, copy) = (vol.link(), "/var/lib/droplet/head");
    yard.sh(A, &format!("cryptsetup luksHeaderBackup {disk} --header-backup-file {copy}"))?;
    let spoil = |yard: &VmHarness, from: &str, at: u64, length: u64| {
        let blocks = format!("bs=512 seek={} count={}", at / 512, length / 512);
        yard.sh(A, &format!("dd if={from} of={disk} {blocks} conv=notrunc,fsync status=none")).map(drop)
    };
    for copy_at in [0, 16 * 1024] {
        spoil(yard, "/dev/zero", copy_at, 4096)?;
        is_whole(yard, &vol)?;
        let magic = yard.sh(A, &format!("dd if={disk} bs=1 skip={copy_at} count=4 status=none"))?;
        ensure(magic == "LUKS" || magic == "SKUL", || format!("at {copy_at} is {magic:?}"))?;
    }
    spoil(yard, "/dev/urandom", 32 * 1024, 15 * MIB)?;
    is_refused(yard, &vol, RpcStatusCode::INVALID_ARGUMENT, &["does not open", "key slots on its disk are damaged"])?;
    for copy_at in [0, 16 * 1024] {
        spoil(yard, "/dev/urandom", copy_at + 512, 2048)?;
    }
    let restore = format!("cryptsetup luksHeaderRestore {disk}");
    let words = ["whose header is damaged", "luksHeaderRestore", "nothing was changed"];
    is_refused(yard, &vol, RpcStatusCode::FAILED_PRECONDITION, &words)?;
    yard.sh(A, &format!("{restore} --header-backup-file {copy} --batch-mode"))?;
    is_whole(yard, &vol)?;
    spoil(yard, "/dev/zero", 0, 16 * MIB)?;
    is_refused(yard, &vol, RpcStatusCode::FAILED_PRECONDITION, &["unknown data", "nothing was changed"])?;
    yard.sh(A, &format!("{restore} --header-backup-file {copy} --batch-mode"))?;
    is_whole(yard, &vol)
}

/// Open without anybody using it, as a plugin leaves it that is killed right after opening it; and open as something else.
pub fn left_open(yard: &mut VmHarness) -> StepResult<()> {
    let vol = used(yard, "left", "ext4")?;
    let (disk, own) = (vol.link(), "do-csi-left");
    let open = |yard: &VmHarness, name: &str| {
        yard.sh(A, &format!("printf '{KEY}' | cryptsetup open --key-file=- {disk} {name}"))
    };
    // Closed when the volume is staged, unstaged, and when the plugin starts.
    open(yard, own)?;
    is_whole(yard, &vol)?;
    open(yard, own)?;
    yard.unstage(A, &vol)?;
    nothing_is_open(yard, A)?;
    open(yard, own)?;
    yard.kill(A)?;
    yard.restart(A)?;
    nothing_is_open(yard, A)?;

    // What cryptsetup leaves when it is killed while it looks at the key slots.
    let table = "0 512 crypt aes-xts-plain64 $(printf %064d 7) 0";
    let temporary = "temporary-cryptsetup-1-0";
    yard.sh(A, &format!("echo \"{table} {disk} 64\" | dmsetup create {temporary} --uuid CRYPT-TEMP-{temporary}"))?;
    is_whole(yard, &vol)?;

    // What is somebody else's is named and left alone.
    open(yard, "backup")?;
    refused(yard.stage(A, &vol)?, RpcStatusCode::FAILED_PRECONDITION, &["dm-", "cryptsetup close"])?;
    // What it writes after the disk was detached would be lost, so the volume is not let go of, by whichever plugin.
    let unstaged = |yard: &mut VmHarness| {
        let answer = yard.client(A)?.unstage(&vol.csi.id, &yard.staging(A, &vol));
        refused(answer, RpcStatusCode::FAILED_PRECONDITION, &["still in use", "(backup)"])
    };
    unstaged(yard)?;
    yard.kill(A)?;
    yard.restart(A)?;
    unstaged(yard)?;
    yard.sh(A, "cryptsetup close backup")?;
    yard.unstage(A, &vol)?;
    is_whole(yard, &vol)?;
    // Whoever makes something else of a disk has it locked meanwhile, another plugin too.
    let lock = format!("(setsid flock -x {disk} sleep 6 >/dev/null 2>&1 &); while flock -n -x {disk} true; do :; done");
    yard.sh(A, &lock)?;
    let started = Instant::now();
    is_whole(yard, &vol)?;
    ensure(started.elapsed().as_secs() >= 3, || "a lock was not waited for".to_owned())?;
    // The plugin takes this code for "gone by itself".
    yard.sh(A, "cryptsetup close --deferred do-csi-nothing; [ $? = 4 ]").map(drop)
}

/// Staged at two paths, as Nomad does for readers and writers: it stays open until it is unstaged at both.
pub fn twice(yard: &mut VmHarness) -> StepResult<()> {
    let vol = used(yard, "twice", "btrfs")?;
    yard.stage(A, &vol)??;
    yard.publish(A, &vol)?;
    let (client, other) = (yard.client(A)?, yard.staging(A, &vol).with_file_name("reader"));
    yard.machine(A).prepare(&other, &yard.target(A, &vol))?;
    client.stage(&keyless(&vol).csi, &other)?;
    client.unstage(&vol.csi.id, &other)?;
    yard.says(A, &vol, "file", "for nobody's eyes")?;
    yard.off(A, &vol)?;
    // Unstaged and staged without a pause, as by two jobs of which one follows the other.
    for _ in 0..3 {
        yard.stage(A, &vol)??;
        yard.unstage(A, &vol)?;
    }
    // A container has a mount of its own, which the plugin does not see: what is unstaged is still in use, and so not given out.
    yard.stage(A, &vol)??;
    yard.sh(A, "unshare --mount --propagation private sleep 1000 >/dev/null 2>&1 & until pgrep -x sleep >/dev/null; do :; done")?;
    let (client, staging) = (yard.client(A)?, yard.staging(A, &vol));
    for _ in 0..2 {
        let words = ["(sleep)", "nsenter -t ", "is detached is lost"];
        refused(client.unstage(&vol.csi.id, &staging), RpcStatusCode::FAILED_PRECONDITION, &words)?;
    }
    refused(yard.stage(A, &vol)?, RpcStatusCode::FAILED_PRECONDITION, &["(sleep)", "in use on this droplet"])?;
    yard.sh(A, "pkill -x sleep")?;
    yard.unstage(A, &vol)?;
    nothing_is_open(yard, A)?;
    yard.stage(A, &vol)??;
    yard.publish(A, &vol)?;
    yard.says(A, &vol, "file", "for nobody's eyes")?;
    yard.off(A, &vol)?;
    nothing_is_open(yard, A)
}

/// Made an encrypted volume, but without a file system yet, when its disk grows.
pub fn grown_early(yard: &mut VmHarness) -> StepResult<()> {
    let (vol, disk) = (encrypted(yard.told("early", "xfs")?), yard.disk("early")?);
    yard.plug(A, &disk)?;
    yard.sh(A, "mount --bind /bin/false /usr/sbin/mkfs.xfs")?;
    refused(yard.stage(A, &vol)?, RpcStatusCode::INTERNAL, &["mkfs.xfs"])?;
    nothing_is_open(yard, A)?;
    yard.sh(A, "umount /usr/sbin/mkfs.xfs")?;
    // Its key is settled by now, and the log says what to do if it is lost.
    is_refused(yard, &with_key(&vol, "another"), RpcStatusCode::INVALID_ARGUMENT, &["does not open"])?;
    yard.sh(A, &format!("grep -F 'never given out' /var/lib/droplet/plugin.log | grep -F '{}'", vol.name))?;
    yard.monitor(A).resize(&disk.id, 2 * GIB)?;
    yard.until(A, &format!("[ $(blockdev --getsize64 {}) = {} ]", vol.link(), 2 * GIB))?;
    yard.stage(A, &vol)??;
    yard.publish(A, &vol)?;
    yard.put(A, &vol, "file", "for nobody's eyes")?;
    let bytes = yard.machine(A).droplet.file_system_size(&yard.target(A, &vol))?;
    ensure(bytes > 18 * GIB / 10, || format!("it has {bytes} bytes"))?;
    yard.off(A, &vol)?;
    is_whole(yard, &vol)
}

/// A header that somebody has planted while the disk was away, with the right key and with no cipher; and the same, open and
/// mounted already: it is refused by name and nothing is written to it. Without dm-crypt a blank disk stays blank.
pub fn planted(yard: &mut VmHarness) -> StepResult<()> {
    let vol = used(yard, "planted", "ext4")?;
    let (disk, copy, own) = (vol.link(), "/var/lib/droplet/header", "do-csi-planted");
    yard.sh(A, &format!("cryptsetup luksHeaderBackup {disk} --header-backup-file {copy}"))?;
    let format =
        "cryptsetup luksFormat --type luks2 -q --key-file=- --offset 32768 --pbkdf-memory 32768 --iter-time 100";
    yard.sh(A, &format!("printf '{KEY}' | {format} --cipher cipher_null-ecb {disk}"))?;
    is_refused(
        yard,
        &vol,
        RpcStatusCode::FAILED_PRECONDITION,
        &["cipher_null", "luksHeaderRestore", "nothing was changed"],
    )?;
    // What is open already is judged by what the kernel does.
    yard.sh(A, &format!("printf '{KEY}' | cryptsetup open --key-file=- {disk} {own}"))?;
    yard.sh(
        A,
        &format!("mke2fs -q /dev/mapper/{own} 4M && mkdir /run/planted && mount /dev/mapper/{own} /run/planted"),
    )?;
    refused(
        yard.stage(A, &vol)?,
        RpcStatusCode::FAILED_PRECONDITION,
        &["cipher_null", "not encrypted as it should be"],
    )?;
    yard.sh(A, &format!("umount /run/planted && rmdir /run/planted && cryptsetup close {own}"))?;
    let blank = format!("blkdiscard -z {disk}");
    yard.sh(A, &blank)?;
    // Without what encrypts, nothing is written to a blank disk.
    let (module, away) = ("/lib/modules/$(uname -r)/kernel/drivers/md/dm-crypt.ko", "/run/dm-crypt.ko");
    yard.sh(A, &format!("rmmod dm_crypt && mv {module} {away} && depmod"))?;
    is_refused(yard, &vol, RpcStatusCode::FAILED_PRECONDITION, &["modprobe dm-crypt", "its disk is as it was"])?;
    yard.sh(A, &format!("mv {away} {module} && depmod"))?;
    yard.stage(A, &vol)??;
    yard.unstage(A, &vol)?;
    nothing_is_open(yard, A)
}
