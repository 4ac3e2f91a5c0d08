//! The udev rule of DigitalOcean's droplet images that mounts volumes by itself.

use super::harness::{A, VmHarness};
use crate::support::story::{StepResult, ensure};

const RULE: &str = "/etc/udev/rules.d/99-digitalocean-automount.rules";
const SCRIPT: &str = "/run/automount";

/// What the rule does: a short look at each volume that comes. The link is there by then.
const AUTOMOUNT: &str = "#!/bin/sh
mkdir -p /mnt/look
mount \"$1\" /mnt/look && sleep 4 && umount /mnt/look && touch /run/looked
";

/// A volume that the rule has mounted when it is staged.
pub fn wins(yard: &mut VmHarness) -> StepResult<()> {
    let mut vol = yard.volume("automounted", "ext4")?;
    yard.up(A, &mut vol)?;
    yard.put(A, &vol, "file", "content")?;
    yard.down(A, &vol)?;

    let rule = format!(r#"ACTION=="add", ENV{{ID_VENDOR}}=="DO", ENV{{ID_MODEL}}=="Volume", RUN+="{SCRIPT} $devnode""#);
    yard.machine(A).droplet.write(RULE.as_ref(), &format!("{rule}\n"))?;
    yard.machine(A).droplet.write(SCRIPT.as_ref(), AUTOMOUNT)?;
    yard.sh(A, &format!("rm -f /run/looked; chmod +x {SCRIPT}; udevadm control --reload"))?;
    let droplet = yard.machine(A).node_id();
    yard.client(A)?.controller_publish(&mut vol.csi, &droplet)?;
    yard.until(A, "findmnt /mnt/look")?;
    yard.stage(A, &vol)??;
    yard.publish(A, &vol)?;
    yard.says(A, &vol, "file", "content")?;
    yard.until(A, "test -e /run/looked && ! findmnt /mnt/look")?;
    let readable = yard.machine(A).droplet.read(&yard.target(A, &vol).join("file"))?;
    ensure(readable == "content", || format!("it says {readable:?}"))?;
    yard.down(A, &vol)?;
    yard.sh(A, &format!("rm {RULE} {SCRIPT} && udevadm control --reload")).map(drop)
}
