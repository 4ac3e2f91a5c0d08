//! The Unix socket's place in the file system.
//!
//! Owns the socket file from before the bind until after the shutdown: it is bound to a name of its own beside the real
//! one, and a rename puts it into place. gRPC's own socket has that name for a moment before. So a stale socket is replaced without a gap, the permissions are right before
//! anybody can connect, and gRPC's habit of unlinking the bound name at exit cannot hit the socket of a successor.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;

use log::{info, warn};

/// Longest path that fits into a socket address. Source: unix(7), `sun_path` has 108 bytes with the final zero.
const MAX_PATH: usize = 107;

/// Device and inode number: which file it is, whatever its name.
type Identity = (u64, u64);

/// A socket file that is going to be, or is, in place.
#[derive(Debug)]
pub struct SocketFile {
    place: PathBuf,
    bound: PathBuf,
    identity: Option<Identity>,
}

impl SocketFile {
    /// Checks that a socket can be made at `place`, by making one, and chooses the name to bind first.
    ///
    /// # Errors
    /// One line saying why not: a missing directory, a path too long, something else than a socket in the place, or the
    /// system's reason.
    pub fn plan(place: &Path) -> Result<SocketFile, String> {
        let refuse = |why: String| format!("cannot serve on {}: {why}", place.display());
        if let Ok(found) = fs::symlink_metadata(place)
            && !found.file_type().is_socket()
        {
            return Err(refuse("it exists and is not a socket".to_owned()));
        }
        let directory = match place.parent() {
            Some(parent) if parent != Path::new("") => parent,
            Some(_) | None => Path::new("."),
        };
        if !directory.is_dir() {
            return Err(refuse(format!("there is no directory {}", directory.display())));
        }
        let bound = directory.join(temporary_name(process::id()));
        let longest = place.as_os_str().len().max(bound.as_os_str().len());
        if longest > MAX_PATH {
            return Err(refuse(format!("the path has {longest} bytes, a socket's path at most {MAX_PATH}")));
        }
        // gRPC would tell the system's reason only in a log of its own.
        try_bind(&bound).map_err(|err| refuse(err.to_string()))?;
        Ok(SocketFile { place: place.to_owned(), bound, identity: None })
    }

    /// Where clients find the socket.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The address that gRPC is to bind.
    #[must_use]
    pub fn grpc_address(&self) -> String {
        address(&self.bound)
    }

    /// Where gRPC's socket is, and then the one that callers find, until it is moved into its place.
    #[must_use]
    pub fn bound(&self) -> &Path {
        &self.bound
    }

    /// Moves the bound socket into its place with these permissions, replacing a stale one.
    ///
    /// # Errors
    /// The system's, from chmod or rename.
    pub fn put_into_place(&mut self, mode: u32) -> io::Result<()> {
        fs::set_permissions(&self.bound, fs::Permissions::from_mode(mode))?;
        let identity = identity(&self.bound)?;
        fs::rename(&self.bound, &self.place)?;
        self.identity = Some(identity);
        info!(endpoint:% = self.place.display(), mode:% = format_args!("{mode:04o}"); "serving");
        Ok(())
    }

    /// Takes the socket away, unless the place belongs to another process by now. A second call does nothing.
    pub fn remove(&mut self) {
        let Some(ours) = self.identity.take() else { return };
        if identity(&self.place).ok() != Some(ours) {
            info!(endpoint:% = self.place.display(); "leaving the socket in place, as another process has put its own there");
            return;
        }
        if let Err(err) = fs::remove_file(&self.place) {
            warn!(endpoint:% = self.place.display(); "could not remove the socket: {err}");
        }
    }
}

/// A socket's path as an address of gRPC, with every byte that is special in a URI escaped.
#[must_use]
pub fn address(path: &Path) -> String {
    let mut address = String::from("unix:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => address.push(char::from(*byte)),
            b if b.is_ascii_alphanumeric() => address.push(char::from(*b)),
            b => address.push_str(&format!("%{b:02X}")),
        }
    }
    address
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

fn try_bind(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        // Left behind by a process of the same number that was killed.
        fs::remove_file(path)?;
    }
    drop(UnixListener::bind(path)?);
    fs::remove_file(path)
}

fn identity(path: &Path) -> io::Result<Identity> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// A name no longer than `csi.sock`, so that a path that just fits still fits.
fn temporary_name(pid: u32) -> OsString {
    let mut name = OsString::from(".");
    name.push(OsStr::new(&format!("{:x}", pid & 0x0fff_ffff)));
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve_at(place: &Path, mode: u32) -> (SocketFile, UnixListener) {
        let mut file = SocketFile::plan(place).unwrap();
        let listener = UnixListener::bind(&file.bound).unwrap();
        file.put_into_place(mode).unwrap();
        (file, listener)
    }

    #[test]
    fn a_stale_socket_is_replaced_and_the_permissions_are_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("csi.sock");
        drop(UnixListener::bind(&place).unwrap());
        let (mut file, _listener) = serve_at(&place, 0o600);
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o600);
        file.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_socket_of_a_successor_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("csi.sock");
        let (mut first, _first) = serve_at(&place, 0o600);
        let (mut second, _second) = serve_at(&place, 0o600);
        first.remove();
        assert!(place.exists());
        second.remove();
        assert!(!place.exists());
    }

    #[test]
    fn a_place_that_cannot_hold_a_socket_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let long = dir.path().join("x".repeat(120));
        for place in [dir.path().join("file"), dir.path().join("none/csi.sock"), dir.path().to_owned(), long] {
            let line = SocketFile::plan(&place).unwrap_err();
            assert!(line.starts_with("cannot serve on") && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn special_characters_of_the_path_are_escaped_for_grpc() {
        let file = SocketFile { place: "/x".into(), bound: "/a b/[0]%.s".into(), identity: None };
        assert_eq!(file.grpc_address(), "unix:/a%20b/%5B0%5D%25.s");
    }
}
