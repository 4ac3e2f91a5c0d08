//! A machine on which SELinux forbids what is not allowed.

use super::harness::{B, VmHarness};
use crate::support::story::{StepResult, ensure};

/// The setting of a volume that names its label.
const SETTING: &str = "dobs.csi.digitalocean.com/selinux-label";
const LABEL: &str = "system_u:object_r:volume_t:s0";
/// A policy with one confined domain, which may read what has that label and little else.
const POLICY: &str = include_str!("selinux.cil");

/// The files of a volume have the label that was asked for, and a confined process reads them.
pub fn labelled(yard: &mut VmHarness) -> StepResult<()> {
    yard.cut_power(B);
    yard.boot(B, "security=selinux selinux=1 enforcing=0")?;
    yard.machine(B).droplet.write("/run/policy.cil".as_ref(), POLICY)?;
    // The tools take SELinux for on only where it was set up.
    yard.sh(B, "mount -t selinuxfs selinuxfs /sys/fs/selinux && mkdir -p /etc/selinux && : >/etc/selinux/config")?;
    let compile = "secilc -o /run/policy -f /run/contexts -c $(cat /sys/fs/selinux/policyvers) /run/policy.cil";
    yard.sh(B, &format!("{compile} && cat /run/policy >/sys/fs/selinux/load && echo 1 >/sys/fs/selinux/enforce"))?;

    for fs in ["xfs", "ext4"] {
        let mut vol = yard.volume(&format!("labelled-{fs}"), fs)?;
        vol.csi.context.insert(SETTING.to_owned(), LABEL.to_owned());
        yard.up(B, &mut vol)?;
        yard.put(B, &vol, "file", "content")?;
        let file = yard.target(B, &vol).join("file").display().to_string();
        let seen = yard.sh(B, &format!("stat -c %C {file}"))?;
        ensure(seen.trim() == LABEL, || format!("the file's label is {seen}"))?;
        let confined = "runcon system_u:system_r:confined_t:s0 cat";
        let text = yard.sh(B, &format!("{confined} {file}"))?;
        ensure(text == "content", || format!("the confined process reads {text:?}"))?;
        // The same process may not read what has another label.
        let secret = "echo secret >/run/secret && chcon system_u:object_r:secret_t:s0 /run/secret && cat /run/secret";
        yard.sh(B, &format!("{secret} && ! {confined} /run/secret"))?;
        yard.down(B, &vol)?;
    }
    let is_enforcing = yard.sh(B, "cat /sys/fs/selinux/enforce")?;
    ensure(is_enforcing.trim() == "1", || "SELinux was switched off".to_owned())?;
    yard.cut_power(B);
    yard.boot(B, "")
}
