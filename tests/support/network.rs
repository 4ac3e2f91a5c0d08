//! A private network for droplets: one bridge, on which the simulated DigitalOcean listens, and a cable to each droplet.
//!
//! Owns the addresses. The bridge is made in the network namespace of this process, which has to be a fresh one, so that
//! all of it ends with the process and nothing of the machine's own network is touched.

use std::io::{Error, Result};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use super::droplet::Droplet;

/// Where DigitalOcean is on this network. Source: RFC 5737, addresses for documentation.
pub const CLOUD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Where every droplet has its metadata service.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const BRIDGE: &str = "cloud";
/// The name by which containers know the API. Source: RFC 6761, a domain for tests.
const API_HOST: &str = "api.digitalocean.test";

/// The address of a droplet, by its number from 1 on.
pub fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 100 + number))
}

/// Where the simulated cloud has to listen, so that droplets reach the API and their metadata service.
pub fn listen() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80))
}

/// The API's base URL as droplets know it.
pub fn api_url() -> String {
    format!("http://{CLOUD}/")
}

/// The same by name, for containers that are told [`api_host`].
pub fn api_url_by_name() -> String {
    format!("http://{API_HOST}/")
}

/// The API's name and address, as Docker puts them into a container's `/etc/hosts`.
pub fn api_host() -> String {
    format!("{API_HOST}:{CLOUD}")
}

/// Makes the bridge.
///
/// # Errors
/// This is not a fresh network namespace, or `ip` refuses.
pub fn build() -> Result<()> {
    let interfaces = std::fs::read_dir("/sys/class/net").map(Iterator::count).unwrap_or_default();
    let has_routes = std::fs::read_to_string("/proc/self/net/route").is_ok_and(|table| table.lines().count() > 1);
    if has_routes {
        return Err(Error::other(format!(
            "a network namespace of its own is needed, and this one has routes ({interfaces} interfaces)"
        )));
    }
    ip(&["link", "set", "lo", "up"])?;
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["address", "add", &format!("{CLOUD}/24"), "dev", BRIDGE])?;
    ip(&["address", "add", &format!("{METADATA}/32"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])
}

/// Connects a droplet, which gets the address of its number.
///
/// # Errors
/// `ip` refuses.
pub fn connect(droplet: &Droplet, number: u8) -> Result<()> {
    let pid = droplet.pid().ok_or_else(|| Error::other("only a simulated droplet is connected"))?.to_string();
    let (cable, own) = (format!("droplet{number}"), format!("{}/24", address(number)));
    ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
    ip(&["link", "set", &cable, "master", BRIDGE, "up"])?;
    for line in [
        &["link", "set", "lo", "up"][..],
        &["address", "add", &own, "dev", "eth0"],
        &["link", "set", "eth0", "up"],
        &["route", "add", "default", "via", &CLOUD.to_string()],
    ] {
        run(droplet.command(Path::new("ip")).args(line))?;
    }
    Ok(())
}

fn ip(line: &[&str]) -> Result<()> {
    run(Command::new("ip").args(line))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
