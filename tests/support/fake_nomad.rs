//! A stand-in for Nomad's API, as far as the commands for people ask it: fixed answers, in the shapes of Nomad 2.0's
//! own.
//!
//! Source of the shapes: `api/csi.go`, `api/nodes.go` and `nomad/structs/csi.go` in Nomad.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

type Answers = Arc<Mutex<Told>>;

/// What it answers, by path with query, where all else is not found; and the paths that it was asked for.
#[derive(Debug, Default)]
struct Told {
    answers: BTreeMap<String, (u16, Value)>,
    asked: Vec<String>,
}

/// The stand-in.
#[derive(Debug)]
pub struct FakeNomad {
    address: SocketAddr,
    answers: Answers,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A volume that is registered.
#[derive(Debug, Clone)]
pub struct Registration<'a> {
    /// Its id in Nomad.
    pub id: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// DigitalOcean's id.
    pub external_id: &'a str,
    /// The CSI name of its plugin.
    pub provider: &'a str,
    /// Its claims: the allocation, the node, and the state of the allocation.
    pub claims: &'a [(&'a str, &'a str, &'a str)],
}

impl FakeNomad {
    /// Starts one without volumes: a node named `n1` that is this droplet and ready, and a node `n2` that is down.
    /// Every token sees everything.
    pub fn start(droplet: u64) -> FakeNomad {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (answers, ends) = (Answers::default(), Arc::new(AtomicBool::new(false)));
        let (told, over) = (Arc::clone(&answers), Arc::clone(&ends));
        let serve = move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let mut stream = stream.unwrap();
                answer(&mut stream.try_clone().unwrap(), &mut stream, &told);
            }
        };
        let thread = Some(thread::spawn(serve));
        let nomad = FakeNomad { address, answers, ends, thread };
        nomad.set("/v1/acl/token/self", 400, json!("ACL support disabled"));
        let node = |id: &str, status: &str| json!({ "ID": id, "Name": id, "Status": status, "Drain": false });
        nomad.set("/v1/nodes", 200, json!([node("n1", "ready"), node("n2", "down")]));
        let info = json!({ "Healthy": true, "NodeInfo": { "ID": droplet.to_string(), "MaxVolumes": 15 } });
        let plugin = json!({
            "ID": "digitalocean", "Provider": "dobs.csi.digitalocean.com", "ControllersHealthy": 1,
            "ControllersExpected": 1, "NodesHealthy": 1, "NodesExpected": 1, "Nodes": { "n1": info }, "Controllers": null,
        });
        nomad.set("/v1/plugin/csi/digitalocean", 200, plugin);
        nomad.register(&[]);
        nomad
    }

    /// Sets what is registered.
    pub fn register(&self, volumes: &[Registration<'_>]) {
        let stub = |volume: &Registration<'_>| {
            json!({
                "ID": volume.id, "Namespace": volume.namespace, "ExternalID": volume.external_id,
                "PluginID": "digitalocean", "Provider": volume.provider, "CurrentReaders": 0,
                "CurrentWriters": volume.claims.len(), "Schedulable": true,
            })
        };
        let stubs: Vec<Value> = volumes.iter().map(stub).collect();
        self.set("/v1/volumes?type=csi&namespace=*", 200, json!(stubs));
        for volume in volumes {
            let claim = |(id, node, status): &(&str, &str, &str)| json!({ "ID": id, "NodeID": node, "JobID": "blog", "ClientStatus": status, "DesiredStatus": "run" });
            let mut whole = stub(volume);
            let claims: Vec<Value> = volume.claims.iter().map(claim).collect();
            // Go writes an empty list as null.
            whole["Allocations"] = if claims.is_empty() { Value::Null } else { json!(claims) };
            let path = format!("/v1/volume/csi/{}?namespace={}", volume.id, volume.namespace);
            self.set(&path, 200, whole);
        }
    }

    /// Sets one answer.
    pub fn set(&self, path: &str, status: u16, body: Value) {
        self.answers.lock().unwrap().answers.insert(path.to_owned(), (status, body));
    }

    /// The paths that it was asked for since the last reset.
    pub fn calls(&self) -> Vec<String> {
        self.answers.lock().unwrap().asked.clone()
    }

    /// Forgets them.
    pub fn reset_calls(&self) {
        self.answers.lock().unwrap().asked.clear();
    }

    /// Its address, as `NOMAD_ADDR` has it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers on a Unix socket too, until the test's process ends.
    pub fn listen_on(&self, socket: &Path) {
        let listener = UnixListener::bind(socket).unwrap();
        let told = Arc::clone(&self.answers);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                answer(&mut stream.try_clone().unwrap(), &mut stream, &told);
            }
        });
    }
}

impl Drop for FakeNomad {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        drop(std::net::TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn answer(from: &mut impl Read, to: &mut impl Write, answers: &Answers) {
    let mut lines = BufReader::new(from).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let (status, body) = {
        let mut told = answers.lock().unwrap();
        told.asked.push(path.clone());
        told.answers.get(&path).cloned().unwrap_or((404, json!("not found")))
    };
    let body = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    to.write_all(head.as_bytes()).and_then(|()| to.write_all(body.as_bytes())).ok();
}
