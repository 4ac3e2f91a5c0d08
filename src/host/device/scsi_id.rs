//! What a disk says of itself: the SCSI vendor, model and names that sysfs shows.
//!
//! Owns the decision whether a disk carries a certain volume's name. It opens no device: the kernel read these pages
//! when the disk came.

use std::path::Path;

use crate::error::Result;
use crate::host::device::sysfs::{read_attribute, read_bytes};
use crate::host::presence::observe_is_there;
use crate::id::VolumeName;

const VENDOR: &str = "DO";
const MODEL: &str = "Volume";
/// QEMU cuts the unit serial number of page 0x80 to this length, but not the designator of page 0x83.
/// Source: `scsi_disk_emulate_vpd_page` in QEMU's `hw/scsi/scsi-disk.c`.
const SERIAL_LIMIT: usize = 36;

/// A disk's own statement of what it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::host) struct Identity {
    /// Whether sysfs shows a device behind the disk at all; loop devices have none.
    has_hardware: bool,
    vendor: Option<String>,
    model: Option<String>,
    /// The names in VPD page 0x83, in its order.
    names: Vec<String>,
    /// The unit serial number of VPD page 0x80; read only where there are no names, as it may be cut.
    serial: Option<String>,
}

/// What an identity says about one volume's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host) enum NameMatch {
    /// The disk carries the name.
    Same,
    /// The disk carries only the beginning of the name: it may be the volume, and so may other disks.
    Compatible,
    /// The disk carries no name.
    Silent,
    /// The disk is something else; the text says what.
    Other(String),
}

/// What kind of disk an identity is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host) enum Make {
    /// A volume of DigitalOcean's.
    Volume,
    /// A disk without hardware, which says nothing.
    Unknown,
    /// Another disk; the text says what.
    Other(String),
}

impl Identity {
    /// Reads what sysfs shows below a disk's directory (`/sys/block/sda`).
    pub(in crate::host) fn read(disk: &Path) -> Result<Self> {
        let device = disk.join("device");
        if !observe_is_there(&device)? {
            return Ok(Identity::default());
        }
        let names = read_bytes(&device.join("vpd_pg83"))?.map(|page| parse_names(&page)).unwrap_or_default();
        let serial = match names.as_slice() {
            [] => read_bytes(&device.join("vpd_pg80"))?.and_then(|page| parse_serial(&page)),
            [_, ..] => None,
        };
        let (vendor, model) = (read_attribute(&device.join("vendor"))?, read_attribute(&device.join("model"))?);
        Ok(Identity { has_hardware: true, vendor, model, names, serial })
    }

    /// Decides whether the disk carries this volume's name. Pure.
    pub(in crate::host) fn proves(&self, volume: &VolumeName) -> NameMatch {
        match self.make() {
            Make::Unknown => return NameMatch::Silent,
            Make::Volume => {}
            Make::Other(found) => return NameMatch::Other(found),
        }
        let carries = |name: &String| name == volume.as_str();
        // The page that udev makes the link from goes first; the other one may be cut.
        match (self.names.is_empty(), &self.serial) {
            (false, _) if self.names.iter().any(carries) => NameMatch::Same,
            (false, _) => NameMatch::Other(format!("the volume named {:?}", self.names.join(" or "))),
            (true, Some(serial)) if serial == volume.as_str() => NameMatch::Same,
            (true, Some(serial)) if is_cut(serial) && volume.as_str().starts_with(serial) => NameMatch::Compatible,
            (true, Some(serial)) => NameMatch::Other(format!("the volume with the serial number {serial:?}")),
            (true, None) => NameMatch::Silent,
        }
    }

    /// What kind of disk it is. Pure.
    pub(in crate::host) fn make(&self) -> Make {
        if !self.has_hardware {
            return Make::Unknown;
        }
        if self.vendor.as_deref() != Some(VENDOR) || self.model.as_deref() != Some(MODEL) {
            return Make::Other(format!("{}, which is no DigitalOcean volume", self.described()));
        }
        Make::Volume
    }

    /// The names that the disk carries; where there are none its serial number, which is the name or the beginning of it.
    pub(in crate::host) fn names(&self) -> Vec<String> {
        self.names.iter().chain(&self.serial).cloned().collect()
    }

    #[cfg(test)]
    pub(in crate::host) fn fake(name: &str) -> Self {
        let text = |text: &str| Some(text.to_owned());
        Identity {
            has_hardware: true,
            vendor: text(VENDOR),
            model: text(MODEL),
            names: vec![name.to_owned()],
            serial: None,
        }
    }

    fn described(&self) -> String {
        match (&self.vendor, &self.model) {
            (Some(vendor), Some(model)) => format!("a disk {model:?} made by {vendor:?}"),
            (Some(_) | None, Some(_) | None) => "a disk of unnamed make".to_owned(),
        }
    }
}

fn is_cut(serial: &str) -> bool {
    serial.len() == SERIAL_LIMIT
}

/// Reads the unit serial number: four bytes of header, then text. `None` if it is empty or not such a page.
///
/// Source: SPC-4, 7.8.15 "Unit Serial Number VPD page".
fn parse_serial(page: &[u8]) -> Option<String> {
    body(page, 0x80).and_then(printable)
}

/// Reads the textual names of the disk itself: vendor-specific ones and those of T10 vendor identification.
///
/// Source: SPC-4, 7.8.5 "Device Identification VPD page"; QEMU gives `device_id` as a vendor-specific one.
fn parse_names(page: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = body(page, 0x83).unwrap_or_default();
    while let Some(([code_set, kind, _, length], tail)) = rest.split_first_chunk::<4>() {
        let Some((designator, next)) = tail.split_at_checked(usize::from(*length)) else { break };
        rest = next;
        let is_text = matches!(code_set & 0x0f, 2 | 3);
        let is_of_the_disk = kind & 0x30 == 0;
        let name = match kind & 0x0f {
            0 => printable(designator),
            // Eight bytes of vendor come first.
            1 => designator.get(8..).and_then(printable),
            // Numbers (EUI-64, NAA, port and group numbers, hashes) and SCSI name strings are not the volume's name.
            2..=u8::MAX => None,
        };
        names.extend(name.filter(|_| is_text && is_of_the_disk));
    }
    names
}

fn body(page: &[u8], code: u8) -> Option<&[u8]> {
    let ([_, have, high, low], body) = page.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    // The kernel may have kept less of a page than the page says it has.
    (*have == code).then(|| body.get(..length).unwrap_or(body))
}

fn printable(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_matches(|c: char| c == ' ' || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn volume(name: &str) -> VolumeName {
        VolumeName::parse(name).unwrap()
    }

    fn page(code: u8, body: &[u8]) -> Vec<u8> {
        [&[0, code], u16::try_from(body.len()).unwrap().to_be_bytes().as_slice(), body].concat()
    }

    fn designator(code_set: u8, kind: u8, body: &[u8]) -> Vec<u8> {
        [&[code_set, kind, 0, u8::try_from(body.len()).unwrap()], body].concat()
    }

    fn disk(names: &[&str], serial: Option<&str>) -> Identity {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Identity { names, serial: serial.map(str::to_owned), ..Identity::fake("") }
    }

    #[test]
    fn a_disk_is_the_volume_whose_name_it_carries() {
        let long = "pvc-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f";
        let same = [
            (disk(&["blog"], None), "blog"),
            (disk(&["other", "blog"], Some("cut")), "blog"),
            (disk(&[], Some("blog")), "blog"),
            (disk(&[long], Some(&long[..36])), long),
        ];
        for (disk, name) in same {
            assert_eq!(disk.proves(&volume(name)), NameMatch::Same, "{disk:?}");
        }
        // A cut serial number is that of every volume whose name begins so, and proves none of them.
        for name in [long, &format!("{}-other", &long[..36])] {
            assert_eq!(disk(&[], Some(&long[..36])).proves(&volume(name)), NameMatch::Compatible, "{name}");
        }
        let other = [
            disk(&[], Some(&long[..35])),
            disk(&["other"], None),
            disk(&["other"], Some("blog")),
            disk(&["blo"], None),
            disk(&["blog2"], None),
            disk(&[], Some("blo")),
            disk(&[], Some("blog2")),
            Identity { vendor: Some("QEMU".into()), ..disk(&["blog"], None) },
            Identity { model: None, ..disk(&["blog"], None) },
            Identity { has_hardware: true, ..Identity::default() },
        ];
        for disk in other {
            assert!(matches!(disk.proves(&volume("blog")), NameMatch::Other(_)), "{disk:?}");
        }
        assert_eq!(Identity::default().proves(&volume("blog")), NameMatch::Silent);
        assert_eq!(disk(&[], None).proves(&volume("blog")), NameMatch::Silent);
    }

    #[test]
    fn the_pages_of_qemu_are_read() {
        // As QEMU's scsi-disk builds them for device_id=blog, with a world wide name after it.
        let names = [designator(2, 0, b"blog"), designator(1, 3, &[0x50, 1, 2, 3, 4, 5, 6, 7])].concat();
        assert_eq!(parse_names(&page(0x83, &names)), ["blog"]);
        assert_eq!(parse_serial(&page(0x80, b"blog")), Some("blog".into()));
        assert_eq!(parse_serial(&page(0x80, b"    ")), None);
        assert_eq!(parse_serial(&page(0x83, b"blog")), None);
    }

    #[test]
    fn what_sysfs_shows_of_disks_is_read() {
        let trees = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sysfs");
        let proof = |tree: &str, name: &str| {
            let identity = Identity::read(&trees.join(tree)).unwrap();
            assert!(identity.has_hardware, "{tree}");
            identity.proves(&volume(name))
        };
        let long = "pvc-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f";
        let brother = "pvc-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d0000";
        for (tree, name, want) in [
            ("volume", "blog", NameMatch::Same),
            ("volume-with-a-long-name", long, NameMatch::Same),
            ("volume-with-a-cut-name", long, NameMatch::Compatible),
            ("volume-with-a-cut-name", brother, NameMatch::Compatible),
            ("volume-without-pages", "blog", NameMatch::Silent),
        ] {
            assert_eq!(proof(tree, name), want, "{tree} {name}");
        }
        for (tree, name, words) in [
            ("volume", "blo", "\"blog\""),
            ("volume-with-a-long-name", brother, long),
            ("volume-with-a-cut-name", "blog", "serial number"),
            ("cdrom", "QM00001", "QEMU DVD-ROM"),
            ("virtio-disk", "blog", "unnamed make"),
        ] {
            let found = proof(tree, name);
            assert!(matches!(&found, NameMatch::Other(found) if found.contains(words)), "{tree} {name}: {found:?}");
        }
    }

    #[test]
    fn a_disk_whose_hardware_cannot_be_looked_at_is_not_one_without() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), Identity::default());
        // A link to itself, which answers ELOOP to all who follow it.
        std::os::unix::fs::symlink("device", dir.path().join("device")).unwrap();
        assert!(Identity::read(dir.path()).is_err());
    }

    #[test]
    fn only_textual_names_of_the_disk_itself_count() {
        let pages = [
            (designator(2, 1, b"DO      blog"), vec!["blog"]),
            (designator(3, 0, b" blog\0\0"), vec!["blog"]),
            (designator(1, 0, b"blog"), vec![]),
            (designator(2, 0x10, b"port"), vec![]),
            (designator(2, 0x20, b"target"), vec![]),
            (designator(3, 8, b"iqn.name"), vec![]),
            (designator(2, 0, &[0xff, 0xfe]), vec![]),
            ([designator(2, 0, b"blog"), vec![2, 0, 0, 200, b'x']].concat(), vec!["blog"]),
        ];
        for (body, want) in pages {
            assert_eq!(parse_names(&page(0x83, &body)), want);
        }
    }

    proptest! {
        #[test]
        fn no_page_stops_the_program(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop((parse_names(&bytes), parse_serial(&bytes)));
            drop((parse_names(&page(0x83, &bytes)), parse_serial(&page(0x80, &bytes))));
        }
    }

    #[test]
    fn fuzz_pages_give_only_what_is_in_them() {
        let body =
            [designator(2, 0, b"blog"), designator(1, 3, &[0x60; 8]), designator(2, 1, b"DO      blog")].concat();
        let (names, serial) = (page(0x83, &body), page(0x80, b"blog"));
        crate::fuzz::fuzz("vpd-pages", &[&names, &serial], &[b"DO      ", b"\x02\x00\x00\x04"], |bytes| {
            let found = parse_names(bytes).into_iter().chain(parse_serial(bytes));
            for name in found {
                assert!(!name.is_empty() && bytes.windows(name.len()).any(|part| part == name.as_bytes()), "{name:?}");
            }
        });
    }
}
