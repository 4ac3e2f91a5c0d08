//! What is wrong with the node that this runs on.
//!
//! Owns the findings about rights, directories, programs and the kernel. Pure.

use std::path::PathBuf;

use crate::ops::diagnosis::{Finding, Reason, Severity, Subject};
use crate::spelling::shell_word;

/// How many volumes DigitalOcean attaches to a droplet. Source: product documentation, "Volumes", limits.
const SLOTS: usize = 15;

/// What was read of this node.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Whether this process may mount; `None`: it cannot be told.
    pub may_mount: Option<bool>,
    /// Why `/sys` is not the host's sysfs.
    pub sysfs: Option<String>,
    /// Whether `/dev` is the kernel's own; `None`: it cannot be told.
    pub has_devices: Option<bool>,
    /// The first program that is missing, with its package.
    pub missing_tool: Option<String>,
    /// File systems that the kernel does not have.
    pub missing_file_systems: Vec<&'static str>,
    /// Whether SELinux is enforced.
    pub is_selinux_enforced: bool,
    /// Whether a label for SELinux is set.
    pub has_label: bool,
    /// The rule of DigitalOcean's images that mounts volumes.
    pub automount_rule: Option<PathBuf>,
    /// Whether the kernel's device mapper is there.
    pub has_device_mapper: bool,
    /// How many volumes are attached here.
    pub volumes: usize,
    /// Why the plugin that serves the socket does not answer.
    pub silent_plugin: Option<String>,
    /// Why the metadata service does not answer.
    pub metadata: Option<String>,
    /// The directories for mounts that have none.
    pub left_directories: Vec<LeftDirectory>,
}

/// A directory for a mount that has none, and has had none for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftDirectory {
    /// Where it is.
    pub path: PathBuf,
    /// Whether nothing is in it.
    pub is_empty: bool,
}

/// What is wrong with the node. Pure.
#[must_use]
pub fn diagnose_machine(machine: &Machine) -> Vec<Finding> {
    let find = |reason, message: String, cure: &str| Finding::new(reason, &Subject::Node, message, cure.to_owned());
    let mut found = Vec::new();
    if machine.may_mount == Some(false) {
        let message = "this process may not mount: it lacks CAP_SYS_ADMIN".to_owned();
        let cure = "run the plugin's container privileged: in Nomad `privileged = true` in the task and `allow_privileged = true` \
                    in the client's configuration of the docker driver; without a container, run it as root";
        found.push(find(Reason::NotPrivileged, message, cure));
    }
    if let Some(why) = &machine.sysfs {
        let cure = "give the plugin's container the host's /sys; a privileged container has it";
        found.push(find(Reason::SysfsMissing, why.clone(), cure));
    }
    if machine.has_devices == Some(false) {
        let message = "/dev is not the kernel's own, so the disks of new volumes do not appear in it".to_owned();
        let cure =
            "run the plugin's container privileged, and give it the host's /dev: in Nomad `volumes = [\"/dev:/dev\"]`";
        found.push(find(Reason::DevicesMissing, message, cure));
    }
    if let Some(missing) = &machine.missing_tool {
        let cure = "use the plugin's image, which has all programs, or install that package on this node";
        found.push(find(Reason::ToolMissing, missing.clone(), cure));
    }
    if !machine.missing_file_systems.is_empty() {
        let message = format!("this node's kernel cannot mount {}", machine.missing_file_systems.join(", "));
        let cure = "use volumes of another file system here, or install the kernel's extra modules \
                    (`apt-get install linux-modules-extra-$(uname -r)`)";
        found.push(find(Reason::FileSystemNotInKernel, message, cure));
    }
    if machine.is_selinux_enforced && !machine.has_label {
        let message =
            "SELinux is enforced on this node, and no --selinux-label is given: tasks may not read their volumes"
                .to_owned();
        let cure = "give the plugin `--selinux-label=system_u:object_r:container_file_t:s0`";
        found.push(find(Reason::SelinuxWithoutLabel, message, cure));
    }
    if let Some(rule) = &machine.automount_rule {
        let message = format!("the rule {} mounts volumes when they are attached", rule.display());
        let cure = format!("run `rm -f {} && udevadm control -R`", shell_word(&rule.to_string_lossy()));
        found.push(Finding::new(Reason::AutomountRule, &Subject::Node, message, cure));
    }
    if !machine.has_device_mapper {
        let message = "the kernel's device mapper is not there, so encrypted volumes cannot be opened".to_owned();
        found.push(find(
            Reason::DeviceMapperMissing,
            message,
            "run `modprobe dm_crypt` on this node, if volumes are encrypted",
        ));
    }
    if machine.volumes >= SLOTS {
        let message =
            format!("{} volumes are attached to this droplet, which takes no more than {SLOTS}", machine.volumes);
        found.push(find(Reason::DropletFull, message, "move a task to another node, or detach what is unused"));
    }
    if let Some(why) = &machine.silent_plugin {
        let cure = "look at the plugin's log (`nomad alloc logs -stderr ALLOC_ID`), and give --endpoint where it serves another socket";
        found.push(find(Reason::PluginDoesNotAnswer, why.clone(), cure));
    }
    if let Some(why) = &machine.metadata {
        let message = format!("the metadata service does not say which droplet this is: {why}");
        let cure = "let the plugin reach 169.254.169.254 (a firewall, or a container without the host's network), or give --droplet-id \
                    and --region";
        found.push(find(Reason::MetadataUnreachable, message, cure));
    }
    found.extend(machine.left_directories.iter().map(diagnose_left));
    found
}

/// What is wrong with a directory that has no mount. Files in it are on the droplet's own disk. Pure.
fn diagnose_left(left: &LeftDirectory) -> Finding {
    let shown = left.path.display();
    let path = left.path.to_string_lossy();
    let word = shell_word(&path);
    if left.is_empty {
        let message = format!("the directory {shown} was left behind: nothing is mounted there");
        let cure = format!("it is in nobody's way; run `rmdir {word}`");
        return Finding::new(Reason::DirectoryLeftBehind, &Subject::Node, message, cure);
    }
    let message = format!("nothing is mounted at {shown}, and there are files in it, on the droplet's own disk");
    let cure = format!("look whose they are (`ls -la {word}`), save what is needed, and remove the directory");
    let finding = Finding::new(Reason::DirectoryLeftBehind, &Subject::Node, message, cure);
    Finding { severity: Severity::Warning, ..finding }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with which nothing is wrong.
    fn well() -> Machine {
        Machine { may_mount: Some(true), has_devices: Some(true), has_device_mapper: true, ..Machine::default() }
    }

    #[test]
    fn each_thing_that_is_wrong_with_a_node_is_a_finding_of_its_own() {
        assert_eq!(diagnose_machine(&well()), []);
        let unknown = Machine { may_mount: None, has_devices: None, ..well() };
        assert_eq!(diagnose_machine(&unknown), [], "what is not known is no finding");
        let text = || Some("why".to_owned());
        let left = |is_empty| vec![LeftDirectory { path: "/csi/staging/blog/rw-file-system-x".into(), is_empty }];
        let table = [
            (Machine { may_mount: Some(false), ..well() }, Reason::NotPrivileged),
            (Machine { sysfs: text(), ..well() }, Reason::SysfsMissing),
            (Machine { has_devices: Some(false), ..well() }, Reason::DevicesMissing),
            (Machine { missing_tool: text(), ..well() }, Reason::ToolMissing),
            (Machine { missing_file_systems: vec!["xfs"], ..well() }, Reason::FileSystemNotInKernel),
            (Machine { is_selinux_enforced: true, ..well() }, Reason::SelinuxWithoutLabel),
            (Machine { automount_rule: Some("/etc/rule".into()), ..well() }, Reason::AutomountRule),
            (Machine { has_device_mapper: false, ..well() }, Reason::DeviceMapperMissing),
            (Machine { volumes: 15, ..well() }, Reason::DropletFull),
            (Machine { silent_plugin: text(), ..well() }, Reason::PluginDoesNotAnswer),
            (Machine { metadata: text(), ..well() }, Reason::MetadataUnreachable),
            (Machine { left_directories: left(true), ..well() }, Reason::DirectoryLeftBehind),
            (Machine { left_directories: left(false), ..well() }, Reason::DirectoryLeftBehind),
        ];
        for (machine, want) in table {
            let found = diagnose_machine(&machine);
            assert_eq!(found.iter().map(|finding| finding.reason).collect::<Vec<_>>(), [want], "{machine:?}");
        }
        let labelled = Machine { is_selinux_enforced: true, has_label: true, ..well() };
        assert_eq!(diagnose_machine(&labelled), []);
        assert_eq!(diagnose_machine(&Machine { volumes: 14, ..well() }), []);
    }
}
