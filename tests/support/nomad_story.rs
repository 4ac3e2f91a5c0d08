//! What an operator of Nomad does with volumes, step by step, on a real Nomad: the guide, played.
//!
//! Owns the steps, what must be true after each, and since which version each can be played. Every command that a user types
//! comes from the guide, which is checked by `Nomad::guide`; what the story does besides that is what happens to users: power
//! cuts, other tools, mistakes.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cloud::{Cloud, Machine};
use super::nomad::{CAN_GROW, DATA_DIR, FREES_DEAD, HAS_CREATE, HAS_VARIABLES, Nomad, REFUSES_COUNT, Version};
use super::status_kb;
use super::story::{Listener, StepResult, ensure, step};
use crate::sim::{DropletStatus, NewVolume};

/// Longer than DigitalOcean wants between two snapshots of a volume.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(660);
/// With a character that begins a comment in files of variables.
const PASSWORD: &str = "se#cret";
/// Steps that are named in one place, as they are noted together on versions that lack what they need.
const SERVICE: (&str, &str, &str) = (
    "PostgreSQL on a volume that the plugin makes and formats",
    "the node is drained: the service moves, its data with it",
    "the plugin is upgraded while the service uses the volume",
);
const DEAD_NODE: (&str, &str) = (
    "power cut: the service comes up on another node with all that was committed",
    "the node comes back, with what it remembers of the lost allocation",
);
const SNAPSHOTS: (&str, &str, &str, &str, &str) = (
    "a snapshot of the volume in use",
    "the periodic job takes one and keeps it",
    "restored into a larger volume, and a copy of the volume",
    "grown while it is in use",
    "the restored data is there; then all of it is deleted",
);
const NO_ID: &str = "00000000-0000-0000-0000-000000000000";

/// How soon plugins are healthy when they run: before Nomad asks a second time, which it does after 30 s. Up to 10 s of it pass
/// until Nomad first asks, and as many until a client tells the server.
const HEALTHY_WITHIN: Duration = Duration::from_secs(25);
/// How often a job is purged and run on another node at once.
const MOVES: usize = 4;
/// What the plugin is told for mounts that nobody takes away, as the page on unused attachments says.
const ALLOCATIONS: &str = "--nomad-allocations=/allocations";

/// What became of a step on one version of Nomad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Played {
    /// It was played, and everything was as it must be.
    Passed,
    /// It was played, and something was not.
    Failed,
    /// The version lacks what it needs.
    Lacking,
}

/// Every step that was played, and what became of it, and a line with the memory that the plugins take after all of it.
#[derive(Debug, Default)]
pub struct Told {
    /// By the names of the steps.
    pub steps: Vec<(String, Played)>,
    /// The line.
    pub memory: String,
}

/// What became of the steps on one version.
#[derive(Debug)]
pub struct Report {
    /// The version, as people write it.
    pub version: String,
    /// By the names of the steps.
    pub steps: Vec<(String, Played)>,
}

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Played::Passed => "yes",
            Played::Failed => "no",
            Played::Lacking => "–",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.version)?;
        self.steps.iter().try_for_each(|(name, played)| writeln!(f, "{played}\t{name}"))
    }
}

impl Report {
    /// Reads what [`Report`] writes.
    pub fn parse(text: &str) -> StepResult<Report> {
        let (version, lines) = text.split_once('\n').ok_or("an empty report")?;
        let line = |line: &str| -> StepResult<(String, Played)> {
            let (played, name) = line.split_once('\t').ok_or("a line without an outcome")?;
            let all = [Played::Passed, Played::Failed, Played::Lacking];
            let played = all.into_iter().find(|one| one.to_string() == played).ok_or("an unknown outcome")?;
            Ok((name.to_owned(), played))
        };
        Ok(Report { version: version.to_owned(), steps: lines.lines().map(line).collect::<StepResult<_>>()? })
    }
}

/// The table of steps by versions, as the page on versions shows it. What a run did not reach is not tested.
pub fn table(reports: &[Report]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in reports.iter().flat_map(|report| &report.steps) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let versions: Vec<&str> = reports.iter().map(|report| report.version.as_str()).collect();
    let mut rows =
        vec![format!("| step | {} |", versions.join(" | ")), format!("|---|{}", "---|".repeat(versions.len()))];
    for name in names {
        let of = |report: &Report| {
            let found = report.steps.iter().find(|(step, _)| step == name);
            found.map_or_else(|| "not tested".to_owned(), |(_, played)| played.to_string())
        };
        rows.push(format!("| {name} | {} |", reports.iter().map(of).collect::<Vec<_>>().join(" | ")));
    }
    rows.join("\n")
}

/// Plays the whole guide on a cloud with three droplets, each with Docker, the plugin's image and stand-ins for the tasks'.
pub fn tell(
    cloud: &Cloud,
    nomad: &mut Nomad,
    program: &Path,
    listener: &mut dyn Listener,
    told: &mut Told,
) -> StepResult<()> {
    let [a, b, c] = cloud.machines.as_slice() else {
        return Err("the story needs three droplets".into());
    };
    let mut story = Scenario { cloud, nomad, listener, told };
    story.first_file(a, b)?;
    story.moves(a, b)?;
    story.restart(a)?;
    story.conflict()?;
    story.service()?;
    story.dead_node()?;
    story.leak(a, c)?;
    story.snapshots()?;
    story.per_alloc()?;
    story.forgotten()?;
    story.memory()?;
    story.apart(a)?;
    story.raw_exec(program, b)?;
    story.all_of_the_guide()
}

struct Scenario<'a> {
    cloud: &'a Cloud,
    nomad: &'a mut Nomad,
    listener: &'a mut dyn Listener,
    told: &'a mut Told,
}

impl Scenario<'_> {
    fn step<T>(
        &mut self,
        name: &str,
        act: impl FnOnce(&Cloud, &mut Nomad) -> StepResult<(T, String)>,
    ) -> StepResult<T> {
        let (cloud, nomad) = (self.cloud, &mut *self.nomad);
        let outcome = step(self.listener, name, || act(cloud, nomad));
        let played = if outcome.is_ok() { Played::Passed } else { Played::Failed };
        self.told.steps.push((name.to_owned(), played));
        outcome
    }

    /// Whether this version is at least that old; otherwise notes that these steps cannot be played on it.
    fn has(&mut self, since: Version, steps: &[&str]) -> bool {
        let has = self.nomad.version >= since;
        if !has {
            self.told.steps.extend(steps.iter().map(|name| ((*name).to_owned(), Played::Lacking)));
        }
        has
    }

    fn first_file(&mut self, a: &Machine, b: &Machine) -> StepResult<()> {
        self.listener.chapter("The first file: written on one node, read on another");
        self.step("the plugin as a system job on three clients, healthy in time", |_, nomad| {
            put_token(nomad, "do-csi-plugin")?;
            let began = Instant::now();
            nomad.guide("nomad job run plugin.nomad.hcl", &[])?;
            await_running_plugins(nomad, 3)?;
            let running = Instant::now();
            await_plugins(nomad, 3, 3)?;
            let (all, took) = (began.elapsed().as_secs_f64(), running.elapsed());
            ensure(took < HEALTHY_WITHIN, || format!("healthy {:.1} s after they ran", took.as_secs_f64()))?;
            let status = nomad.guide("nomad plugin status digitalocean", &[])?;
            let healthy = lines_with(&status, "Healthy");
            Ok(((), format!("{healthy}, {all:.1} s after the job was run, {:.1} s after they ran", took.as_secs_f64())))
        })?;
        self.step("Terraform makes an xfs volume, which is registered", |cloud, nomad| {
            let id = cloud.sim.add_volume(&NewVolume::new("blog", 1, "fra1").formatted("xfs"))?;
            cloud.sim.settle()?;
            edit(&nomad.file("blog.volume.hcl"), NO_ID, &id)?;
            nomad.guide("nomad volume register blog.volume.hcl", &[])?;
            let status = nomad.guide("nomad volume status blog", &[])?;
            let schedulable = lines_with(&status, "Schedulable");
            ensure(schedulable.ends_with("= true"), || status.clone())?;
            Ok(((), schedulable))
        })?;
        let text = format!("hello from {}\n", a.name);
        self.step("put-file on the first node", |_, nomad| {
            nomad.guide("nomad job run -var=node=NODE_A put-file.nomad.hcl", &[("NODE_A", &a.name)])?;
            let allocation = nomad.await_status("put-file", "complete")?;
            let proof = printed(nomad, &allocation, "put-file", &text)?;
            nomad.give_back("put-file")?;
            Ok(proof)
        })?;
        self.step("get-file on the second node", |_, nomad| {
            nomad.guide("nomad job run -var=node=NODE_B get-file.nomad.hcl", &[("NODE_B", &b.name)])?;
            nomad.await_status("get-file", "complete")?;
            let read = nomad.guide("nomad alloc logs -job get-file", &[])?;
            ensure(read == text, || format!("it has read {read:?}"))?;
            nomad.give_back("get-file")?;
            Ok(((), format!("{read:?}")))
        })
    }

    fn moves(&mut self, a: &Machine, b: &Machine) -> StepResult<()> {
        self.listener.chapter("A job is purged and run on another node at once, and a plugin is killed");
        self.step("purged and run elsewhere, again and again", |cloud, nomad| {
            free(cloud, nomad, "blog")?;
            let mut times = Vec::new();
            for (_, machine) in (0..MOVES).zip([a, b].into_iter().cycle()) {
                let began = Instant::now();
                run_holder(nomad, "blog", &machine.name)?;
                times.push(format!("{:.1} s", began.elapsed().as_secs_f64()));
                let holder = where_is(cloud, "blog")?;
                ensure(holder == machine.name, || format!("it is on {holder}, not on {}", machine.name))?;
                nomad.run(&["job", "stop", "-purge", "holder-blog"])?;
            }
            free(cloud, nomad, "blog")?;
            Ok(((), format!("each ran where it should, after {}", times.join(", "))))
        })
    }

    fn restart(&mut self, a: &Machine) -> StepResult<()> {
        self.step("a plugin is killed: it comes back, under a task that goes on", |cloud, nomad| {
            run_holder(nomad, "blog", &a.name)?;
            let before = nomad.await_status("holder-blog", "running")?;
            let engine = a.engine.as_ref().ok_or("no Docker")?;
            for id in plugin_containers(a)? {
                engine.run(&["kill", &id])?;
            }
            nomad.until("the plugin is away", || Ok((healthy_plugins(nomad)? != (3, 3)).then_some(())))?;
            await_plugins(nomad, 3, 3)?;
            let id = before["ID"].as_str().unwrap_or_default();
            nomad.run(&["alloc", "exec", id, "sh", "-c", "echo again >> /blog/again && cat /blog/again"])?;
            let after = nomad.await_status("holder-blog", "running")?;
            ensure(before["ID"] == after["ID"], || "the task was started anew".to_owned())?;
            nomad.run(&["job", "stop", "-purge", "holder-blog"])?;
            free(cloud, nomad, "blog")?;
            Ok(((), "same allocation, it goes on writing, and its volume is free afterwards".to_owned()))
        })
    }

    /// The volume is registered three times under different names, so that Nomad's own claims do not come in between, and
    /// a job on each node wants it at the same moment.
    fn conflict(&mut self) -> StepResult<()> {
        self.listener.chapter("Three nodes want one volume at the same moment");
        let names: Vec<String> = self.cloud.machines.iter().map(|machine| machine.name.clone()).collect();
        self.step("one has it, the others wait, and each gets its turn", |cloud, nomad| {
            // Nomad may still be about to detach it for the last job, and would then do so under the next one on that node: it
            // does not know that two of its volumes are one. What it does not know any more it does not detach.
            free(cloud, nomad, "blog")?;
            nomad.run(&["volume", "deregister", "blog"])?;
            for name in &names {
                let spec = fs::read_to_string(nomad.file("blog.volume.hcl"))?;
                write(nomad, "conflict.volume.hcl", &spec.replace("\"blog\"", &format!("\"blog-{name}\"")))?;
                nomad.run(&["volume", "register", "conflict.volume.hcl"])?;
                let job = derived(nomad, &format!("conflict-{name}"), &format!("blog-{name}"))?
                    .replace("cat /blog/hello", "sleep 3 && cat /blog/hello");
                write(nomad, &format!("conflict-{name}.nomad.hcl"), &job)?;
            }
            for name in &names {
                let node = format!("-var=node={name}");
                nomad.run_job(&format!("conflict-{name}.nomad.hcl"), &["-detach", &node])?;
            }
            let (mut proof, mut times) = (Vec::new(), Vec::new());
            for name in &names {
                let job = format!("conflict-{name}");
                let allocation = nomad.await_status(&job, "complete")?;
                let (_, text) = printed(nomad, &allocation, "put-file", &format!("hello from {name}\n"))?;
                proof.push(text);
                let task = &allocation["TaskStates"]["put-file"];
                times.push(
                    [&task["StartedAt"], &task["FinishedAt"]].map(|time| time.as_str().unwrap_or_default().to_owned()),
                );
                nomad.run(&["job", "stop", "-purge", &job])?;
            }
            times.sort();
            let is_in_turn = times.windows(2).all(|pair| pair[0][1] <= pair[1][0]);
            ensure(is_in_turn, || format!("two had it at once: {times:?}"))?;
            Ok(((), format!("one after the other: {}", proof.join(", "))))
        })?;
        self.step("and right afterwards it is usable as before", |cloud, nomad| {
            for name in &names {
                nomad.until("the claim is gone", || {
                    Ok(nomad.run(&["volume", "deregister", &format!("blog-{name}")]).ok())
                })?;
            }
            nomad.run(&["volume", "register", "blog.volume.hcl"])?;
            free(cloud, nomad, "blog")?;
            let node = names.first().cloned().unwrap_or_default();
            get_file_on(nomad, &node)?;
            Ok(((), format!("get-file is complete on {node}")))
        })
    }

    fn service(&mut self) -> StepResult<()> {
        self.listener.chapter("A service with a volume: created, moved, the plugin upgraded under it");
        let (made, drained, upgraded) = SERVICE;
        if !self.has(HAS_CREATE, &[made, drained, upgraded]) {
            return Ok(());
        }
        self.step(made, |cloud, nomad| {
            nomad.guide("nomad volume create postgres.volume.hcl", &[])?;
            if nomad.version >= HAS_VARIABLES {
                nomad.guide("nomad var put nomad/jobs/postgres password=PASSWORD", &[("PASSWORD", PASSWORD)])?;
            }
            nomad.guide("nomad job run postgres.nomad.hcl", &[])?;
            nomad.await_status("postgres", "running")?;
            let table = "create table seen (word text); insert into seen values ('before')";
            nomad.until("PostgreSQL answers", || sql(nomad, table).map(Some))?;
            nomad.guide(
                "nomad alloc exec -job postgres psql -U postgres -c 'SQL_STATEMENT'",
                &[("SQL_STATEMENT", "select 1")],
            )?;
            let given = ["-c", "printenv POSTGRES_PASSWORD || cat \"$POSTGRES_PASSWORD_FILE\""];
            let given = exec_in(nomad, "postgres", &[&["sh"], &given[..]].concat())?;
            ensure(given.trim_end() == PASSWORD, || format!("the task was given {given:?}"))?;
            let seen = cloud.sim.volume("postgres").ok_or("the cloud has no such volume")?;
            Ok(((), format!("cloud: {} has {} GiB, tags {:?}", seen.name, seen.size_gigabytes, seen.tags)))
        })?;
        self.step(drained, |cloud, nomad| {
            let before = where_is(cloud, "postgres")?;
            let node = nomad.node_id(&before)?;
            nomad.guide("nomad node drain -enable -yes NODE_ID", &[("NODE_ID", &node)])?;
            await_moved(cloud, nomad, "postgres", &before)?;
            let words = await_words(nomad)?;
            ensure(words == ["before"], || format!("the table has {words:?}"))?;
            nomad.guide("nomad node drain -disable -yes NODE_ID", &[("NODE_ID", &node)])?;
            await_plugins(nomad, 3, 3)?;
            Ok(((), format!("from {before} to {}; the table has {words:?}", where_is(cloud, "postgres")?)))
        })?;
        self.step(upgraded, |_, nomad| {
            let before = nomad.await_status("postgres", "running")?;
            nomad.guide("nomad job run -var=log=debug plugin.nomad.hcl", &[])?;
            await_new_plugins(nomad, 3)?;
            insert(nomad, "after the upgrade")?;
            let after = nomad.await_status("postgres", "running")?;
            ensure(before["ID"] == after["ID"], || "the service was started anew".to_owned())?;
            let restarts = after["TaskStates"]["postgres"]["Restarts"].as_u64();
            ensure(restarts == Some(0), || format!("it was restarted {restarts:?} times"))?;
            Ok(((), "same allocation, no restart, and it goes on writing".to_owned()))
        })
    }

    fn dead_node(&mut self) -> StepResult<()> {
        self.listener.chapter("A node dies");
        let (cut, back) = DEAD_NODE;
        if !self.has(FREES_DEAD, &[cut, back]) {
            return Ok(());
        }
        let was = self.step(cut, |cloud, nomad| {
            let dead = where_is(cloud, "postgres")?;
            let (number, machine) = machine_named(cloud, &dead)?;
            let was = nomad.node_id(&dead)?;
            cut_power(nomad, number, machine)?;
            cloud.sim.set_droplet_status(machine.id, DropletStatus::Off);
            nomad.until("Nomad has a new allocation", || {
                let newest = nomad.newest_allocation("postgres")?.ok_or("no allocation")?;
                Ok((newest["NodeName"] != dead.as_str()).then_some(()))
            })?;
            nomad.guide("nomad volume create postgres.volume.hcl", &[])?;
            await_moved(cloud, nomad, "postgres", &dead)?;
            let words = await_words(nomad)?;
            ensure(words == ["before", "after the upgrade"], || format!("the table has {words:?}"))?;
            Ok((was, format!("from {dead} to {}; the table has {words:?}", where_is(cloud, "postgres")?)))
        })?;
        self.step(back, |cloud, nomad| {
            let down = cloud.sim.droplets().into_iter().find(|droplet| droplet.status == DropletStatus::Off);
            let down = down.ok_or("no droplet is off")?;
            let (number, machine) = machine_named(cloud, &down.name)?;
            cloud.sim.set_droplet_status(machine.id, DropletStatus::Active);
            nomad.restart_client(number, machine)?;
            nomad.await_clients(3)?;
            ensure(nomad.node_id(&down.name)? == was, || "it is another client now".to_owned())?;
            await_plugins(nomad, 3, 3)?;
            let words = await_words(nomad)?;
            ensure(words == ["before", "after the upgrade"], || format!("the table has {words:?}"))?;
            Ok(((), "the same three clients, three healthy plugins, and the service goes on".to_owned()))
        })
    }

    fn leak(&mut self, a: &Machine, c: &Machine) -> StepResult<()> {
        self.listener.chapter("An attachment that Nomad knows nothing of");
        self.step("a job that wants the volume elsewhere waits until it is detached", |cloud, nomad| {
            let id = free(cloud, nomad, "blog")?;
            cloud.sim.attach(&id, c.id)?;
            nomad.until("it is attached", || Ok((cloud.sim.attached_to(&id) == Some(c.id)).then_some(())))?;
            let since = submit_get_file(nomad, &a.name)?;
            let message = format!("volume blog ({id}) is attached to droplet {} ({}), not to", c.id, c.name);
            let cure = format!("doctl compute volume-action detach {id} {}", c.id);
            let logs = nomad.until("the plugin says who has it", || {
                Ok(Some(plugin_logs(cloud)?).filter(|logs| logs.contains(&message)))
            })?;
            ensure(logs.contains(&cure), || format!("the log does not say: {cure}"))?;
            let waiting = nomad.newest_allocation("get-file")?.ok_or("no allocation")?;
            ensure(waiting["ClientStatus"] == "pending", || format!("the job is {}", waiting["ClientStatus"]))?;
            // What doctl does, as the message and the guide say.
            cloud.sim.detach(&id, c.id)?;
            await_get_file(nomad, since)?;
            Ok(((), format!("the plugin said: {message}; then the job completed")))
        })?;
        let count = "count = 2 with one volume is refused when it is submitted";
        if !self.has(REFUSES_COUNT, &[count]) {
            return Ok(());
        }
        self.step(count, |_, nomad| {
            let job = fs::read_to_string(nomad.file("postgres.nomad.hcl"))?.replace("count = 1", "count = 2");
            write(nomad, "two.nomad.hcl", &job)?;
            let refusal = nomad.run_job("two.nomad.hcl", &[]).err().ok_or("it was taken")?.to_string();
            let known = "allows only one reader or writer";
            ensure(refusal.contains(known), || refusal.clone())?;
            Ok(((), lines_with(&refusal, known)))
        })
    }

    fn snapshots(&mut self) -> StepResult<()> {
        self.listener.chapter("Snapshots, copies, growth");
        let (taken, kept, restored, grown, read) = SNAPSHOTS;
        if !self.has(HAS_CREATE, &[taken, kept, restored, grown, read]) {
            return Ok(());
        }
        let snapshot = self.step(taken, |cloud, nomad| {
            insert(nomad, "in the snapshot")?;
            // As the guide says, a snapshot has what is on the disk.
            sql(nomad, "checkpoint")?;
            nomad.guide("nomad volume snapshot create postgres before-upgrade", &[])?;
            let listed = nomad.guide("nomad volume snapshot list -plugin digitalocean", &[])?;
            let made = cloud.sim.snapshots().into_iter().next().ok_or("the cloud has no snapshot")?;
            ensure(listed.contains("postgres") || listed.contains(&made.id[..8]), || listed.clone())?;
            Ok((made.id.clone(), format!("cloud: snapshot {} of {}", made.id, made.name)))
        })?;
        if self.has(HAS_VARIABLES, &[kept]) {
            self.keep(kept)?;
        }
        self.step(restored, |cloud, nomad| {
            edit(&nomad.file("restore.volume.hcl"), NO_ID, &snapshot)?;
            edit(&nomad.file("restore.volume.hcl"), "\"10GiB\"", "\"12GiB\"")?;
            nomad.guide("nomad volume create restore.volume.hcl", &[])?;
            cloud.sim.advance(SNAPSHOT_PAUSE);
            let source = cloud.sim.volume("postgres").ok_or("no volume")?.id;
            edit(&nomad.file("clone.volume.hcl"), NO_ID, &source)?;
            nomad.guide("nomad volume create clone.volume.hcl", &[])?;
            let sizes = ["postgres-restored", "postgres-copy"]
                .map(|name| cloud.sim.volume(name).map(|volume| volume.size_gigabytes));
            ensure(sizes == [Some(12), Some(10)], || format!("the cloud has {sizes:?}"))?;
            Ok(((), "cloud: postgres-restored has 12 GiB, postgres-copy 10 GiB".to_owned()))
        })?;
        if self.has(CAN_GROW, &[grown]) {
            self.grow(grown)?;
        }
        self.delete(read, &snapshot)
    }

    fn keep(&mut self, name: &str) -> StepResult<()> {
        self.step(name, |cloud, nomad| {
            cloud.sim.advance(SNAPSHOT_PAUSE);
            nomad.guide(
                "nomad var put nomad/jobs/backup-postgres token=DIGITALOCEAN_ACCESS_TOKEN",
                &[("DIGITALOCEAN_ACCESS_TOKEN", super::cloud::TOKEN)],
            )?;
            nomad.guide("nomad job run backup.nomad.hcl", &[])?;
            nomad.guide("nomad job periodic force backup-postgres", &[])?;
            let taken = nomad.until("the snapshot is there", || {
                let all = cloud.sim.snapshots();
                Ok(all.into_iter().find(|snapshot| snapshot.tags.iter().any(|tag| tag == "do-csi-scheduled")))
            })?;
            nomad.run(&["job", "stop", "-purge", "backup-postgres"])?;
            nomad.run(&["volume", "snapshot", "delete", "digitalocean", &taken.id])?;
            Ok(((), format!("cloud: snapshot {} with tags {:?}", taken.name, taken.tags)))
        })
    }

    fn grow(&mut self, name: &str) -> StepResult<()> {
        self.step(name, |cloud, nomad| {
            edit(&nomad.file("postgres.volume.hcl"), "\"10GiB\"", "\"20GiB\"")?;
            nomad.guide("nomad volume create postgres.volume.hcl", &[])?;
            let size = cloud.sim.volume("postgres").map(|volume| volume.size_gigabytes);
            ensure(size == Some(20), || format!("the cloud has {size:?}"))?;
            let space = nomad.until("the file system has grown", || {
                let space = exec_in(nomad, "postgres", &["df", "-k", "/var/lib/postgresql/data"])?;
                let kib = space.lines().last().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
                Ok(kib.filter(|kib| *kib > 19 << 20))
            })?;
            Ok(((), format!("cloud: 20 GiB; in the task: {space} KiB")))
        })
    }

    fn delete(&mut self, name: &str, snapshot: &str) -> StepResult<()> {
        self.step(name, |cloud, nomad| {
            let job = fs::read_to_string(nomad.file("postgres.nomad.hcl"))?
                .replace("job \"postgres\"", "job \"restored\"")
                .replace("source          = \"postgres\"", "source          = \"postgres-restored\"")
                .replace("nomad/jobs/postgres", "nomad/jobs/restored");
            write(nomad, "restored.nomad.hcl", &job)?;
            if nomad.version >= HAS_VARIABLES {
                nomad.run(&["var", "put", "nomad/jobs/restored", &format!("password={PASSWORD}")])?;
            }
            nomad.run_job("restored.nomad.hcl", &[])?;
            let words = await_words_of(nomad, "restored")?;
            ensure(words.last().map(String::as_str) == Some("in the snapshot"), || format!("the table has {words:?}"))?;
            nomad.run(&["job", "stop", "-purge", "restored"])?;
            nomad.guide("nomad job stop -purge postgres", &[])?;
            for name in ["postgres", "postgres-restored"] {
                free(cloud, nomad, name)?;
            }
            nomad.guide("nomad volume delete postgres-restored", &[])?;
            nomad.run(&["volume", "delete", "postgres-copy"])?;
            nomad.run(&["volume", "delete", "postgres"])?;
            nomad.guide("nomad volume snapshot delete digitalocean SNAPSHOT_ID", &[("SNAPSHOT_ID", snapshot)])?;
            let left: Vec<String> = cloud.sim.volumes().into_iter().map(|volume| volume.name).collect();
            ensure(left == ["blog"], || format!("the cloud has {left:?}"))?;
            ensure(cloud.sim.snapshots().is_empty(), || "the cloud has snapshots".to_owned())?;
            Ok(((), format!("the restored table has {words:?}; cloud: only blog is left")))
        })
    }

    fn per_alloc(&mut self) -> StepResult<()> {
        self.listener.chapter("One volume for each allocation");
        let name = "data[0] and data[1], two allocations, each with its own";
        if !self.has(HAS_CREATE, &[name]) {
            return Ok(());
        }
        self.step(name, |cloud, nomad| {
            nomad.guide("nomad volume create per-alloc.volume.hcl", &[])?;
            edit(&nomad.file("per-alloc.volume.hcl"), "[0]", "[1]")?;
            nomad.run(&["volume", "create", "per-alloc.volume.hcl"])?;
            nomad.guide("nomad job run per-alloc.nomad.hcl", &[])?;
            let held = nomad.until("both volumes are attached", || {
                let volumes = cloud.sim.volumes();
                let data: Vec<&str> = volumes
                    .iter()
                    .filter(|one| one.name != "blog" && one.attached_to.is_some())
                    .map(|one| one.name.as_str())
                    .collect();
                Ok((data.len() == 2).then(|| data.join(" and ")))
            })?;
            nomad.until("both allocations run", || {
                let all = nomad.api("/v1/job/per-alloc/allocations")?;
                let running =
                    all.as_array().map_or(0, |all| all.iter().filter(|one| one["ClientStatus"] == "running").count());
                Ok((running == 2).then_some(()))
            })?;
            ensure(!held.contains('['), || held.clone())?;
            nomad.until("each has written to its own", || {
                let all = nomad.api("/v1/job/per-alloc/allocations")?;
                let mut written = Vec::new();
                for one in all.as_array().into_iter().flatten() {
                    let id = one["ID"].as_str().unwrap_or_default();
                    written.push(nomad.run(&["alloc", "exec", id, "cat", "/data/index"])?);
                }
                written.sort();
                if written == ["0\n", "1\n"] { Ok(Some(())) } else { Err(format!("they have {written:?}").into()) }
            })?;
            nomad.run(&["job", "stop", "-purge", "per-alloc"])?;
            for index in ["data[0]", "data[1]"] {
                nomad.until("it can be deleted", || Ok(nomad.run(&["volume", "delete", index]).ok()))?;
            }
            Ok(((), format!("cloud: {held}")))
        })
    }

    /// What Nomad forgets, both at once since each takes minutes: a job that is purged while no plugin runs, and a volume that is
    /// deregistered by force besides.
    fn forgotten(&mut self) -> StepResult<()> {
        self.listener.chapter("What Nomad has forgotten becomes free by itself");
        let names: Vec<String> = self.cloud.machines.iter().map(|machine| machine.name.clone()).collect();
        let volumes = ["purged-job", "forced"];
        let ids =
            self.step("two tasks with volumes end while no plugin runs, and Nomad forgets them", |cloud, nomad| {
                let ids = volumes.iter().map(|name| register(cloud, nomad, name)).collect::<StepResult<Vec<_>>>()?;
                with_allocations(nomad)?;
                nomad.run_job("plugin.nomad.hcl", &[])?;
                await_new_plugins(nomad, 3)?;
                for (volume, node) in volumes.iter().zip(&names) {
                    run_holder(nomad, volume, node)?;
                }
                nomad.run(&["job", "stop", "do-csi-plugin"])?;
                nomad.until("no plugin runs", || {
                    let running =
                        cloud.machines.iter().map(plugin_containers).collect::<StepResult<Vec<_>>>()?.concat();
                    Ok(running.is_empty().then_some(()))
                })?;
                for volume in volumes {
                    nomad.run(&["job", "stop", "-purge", "-detach", &format!("holder-{volume}")])?;
                }
                nomad.until("the tasks have ended", || {
                    let is_there = |machine: &Machine| holders(machine).map(|all| !all.is_empty());
                    let left = cloud.machines.iter().map(is_there).collect::<StepResult<Vec<bool>>>()?;
                    Ok((!left.contains(&true)).then_some(()))
                })?;
                nomad.until("it is deregistered by force", || {
                    nomad.run(&["volume", "deregister", "-force", "forced"]).map(Some)
                })?;
                nomad.run(&["system", "gc"])?;
                for id in &ids {
                    ensure(cloud.sim.attached_to(id).is_some(), || "it is not attached any more".to_owned())?;
                }
                Ok((ids, "both are attached, and Nomad knows of no user".to_owned()))
            })?;
        self.step("the plugins come back, and each volume is detached", |cloud, nomad| {
            let began = Instant::now();
            nomad.run_job("plugin.nomad.hcl", &[])?;
            await_plugins(nomad, 3, 3)?;
            // What the clients still have of the allocations goes now.
            nomad.run(&["system", "gc"])?;
            let mut times = Vec::new();
            for (name, id) in volumes.iter().zip(&ids) {
                nomad
                    .until(&format!("{name} is detached"), || Ok(cloud.sim.attached_to(id).is_none().then_some(())))?;
                times.push(format!("{name} after {:.0} s", began.elapsed().as_secs_f64()));
            }
            let mounts: Vec<String> = cloud.machines.iter().flat_map(Machine::mounts).collect();
            let is_left = |line: &&String| volumes.iter().any(|name| line.contains(&format!("/{name}/")));
            let left: Vec<&String> = mounts.iter().filter(is_left).collect();
            ensure(left.is_empty(), || format!("mounts are left: {left:?}"))?;
            Ok(((), times.join(", ")))
        })?;
        self.step("each is used on another node", |cloud, nomad| {
            for (volume, node) in volumes.iter().zip(names.iter().cycle().skip(1)) {
                // The one that was not deregistered is known.
                drop(nomad.run(&["volume", "register", &format!("{volume}.volume.hcl")]));
                run_holder(nomad, volume, node)?;
                nomad.run(&["job", "stop", "-purge", &format!("holder-{volume}")])?;
                free(cloud, nomad, volume)?;
                nomad.run(&["volume", "deregister", volume])?;
            }
            Ok(((), "each ran at the first try".to_owned()))
        })
    }

    fn memory(&mut self) -> StepResult<()> {
        self.told.memory = self.step("what the plugins take after all of this", |cloud, _| {
            let mut each = Vec::new();
            for machine in &cloud.machines {
                let engine = machine.engine.as_ref().ok_or("no Docker")?;
                for id in plugin_containers(machine)? {
                    let pid = engine.run(&["inspect", "--format={{.State.Pid}}", &id])?.parse()?;
                    let mb = |field| status_kb(pid, field).map(|kb| kb as f64 / 1024.0).ok_or("no memory figure");
                    let (now, most) = (mb("VmRSS:")?, mb("VmHWM:")?);
                    each.push(format!("{}: {now:.1} MB, at most {most:.1} MB", machine.name));
                }
            }
            let memory = format!("resident memory of the plugins: {}", each.join("; "));
            Ok((memory.clone(), memory))
        })?;
        Ok(())
    }

    fn apart(&mut self, a: &Machine) -> StepResult<()> {
        self.listener.chapter("Other ways to run the plugin");
        let name = "two controllers, and nodes without a token";
        if !self.has(HAS_VARIABLES, &[name]) {
            return Ok(());
        }
        self.step(name, |cloud, nomad| {
            free(cloud, nomad, "blog")?;
            nomad.guide("nomad job stop -purge do-csi-plugin", &[])?;
            await_no_plugin(nomad)?;
            put_token(nomad, "do-csi-controller")?;
            nomad.guide("nomad job run -var=region=fra1 controller.nomad.hcl", &[])?;
            nomad.guide("nomad job run node.nomad.hcl", &[])?;
            await_plugins(nomad, 2, 3)?;
            get_file_on(nomad, &a.name)?;
            free(cloud, nomad, "blog")?;
            for job in ["do-csi-node", "do-csi-controller"] {
                nomad.run(&["job", "stop", "-purge", job])?;
            }
            await_no_plugin(nomad)?;
            Ok(((), "controllers healthy 2, nodes healthy 3; get-file is complete".to_owned()))
        })
    }

    fn raw_exec(&mut self, program: &Path, b: &Machine) -> StepResult<()> {
        let name = "as a program of the host, without Docker";
        if !self.has(HAS_VARIABLES, &[name]) {
            return Ok(());
        }
        self.step(name, |cloud, nomad| {
            edit(
                &nomad.file("plugin-raw-exec.nomad.hcl"),
                "/usr/local/bin/do-csi-plugin",
                &program.display().to_string(),
            )?;
            put_token(nomad, "do-csi-plugin")?;
            nomad.guide("nomad job run plugin-raw-exec.nomad.hcl", &[])?;
            await_plugins(nomad, 3, 3)?;
            get_file_on(nomad, &b.name)?;
            free(cloud, nomad, "blog")?;
            nomad.guide("nomad volume deregister blog", &[])?;
            nomad.run(&["job", "stop", "-purge", "do-csi-plugin"])?;
            await_no_plugin(nomad)?;
            Ok(((), "controllers healthy 3, nodes healthy 3; get-file is complete".to_owned()))
        })
    }

    fn all_of_the_guide(&mut self) -> StepResult<()> {
        let name = "every command of the guide has been run";
        if !self.has(CAN_GROW, &[name]) {
            return Ok(());
        }
        self.step(name, |_, nomad| {
            let unused = nomad.unused();
            ensure(unused.is_empty(), || format!("these have not: {unused:?}"))?;
            Ok(((), "none is left".to_owned()))
        })
    }
}

fn put_token(nomad: &mut Nomad, job: &str) -> StepResult<()> {
    // Older versions have it in a file of the droplet.
    if nomad.version < HAS_VARIABLES {
        return Ok(());
    }
    let line = format!("nomad var put nomad/jobs/{job} token=DIGITALOCEAN_ACCESS_TOKEN");
    // The variable stays when its job is gone.
    if nomad.run(&["var", "get", "-out=json", &format!("nomad/jobs/{job}")]).is_err() {
        nomad.guide(&line, &[("DIGITALOCEAN_ACCESS_TOKEN", super::cloud::TOKEN)])?;
    }
    Ok(())
}

fn await_plugins(nomad: &Nomad, controllers: usize, nodes: usize) -> StepResult<()> {
    nomad.until(&format!("{controllers} controllers and {nodes} nodes are healthy"), || {
        let have = healthy_plugins(nomad)?;
        if have == (controllers, nodes) { Ok(Some(())) } else { Err(format!("healthy: {have:?}").into()) }
    })
}

/// How many controllers and nodes are healthy, of those that run: Nomad may go on counting what a client had that was lost and
/// came back.
fn healthy_plugins(nomad: &Nomad) -> StepResult<(usize, usize)> {
    if nomad.api("/v1/plugins?type=csi")?.as_array().is_none_or(Vec::is_empty) {
        return Ok((0, 0));
    }
    let plugin = nomad.api("/v1/plugin/csi/digitalocean")?;
    let is_running = |allocation: &Value| {
        let all = plugin["Allocations"].as_array();
        all.is_some_and(|all| all.iter().any(|one| one["ID"] == *allocation && one["ClientStatus"] == "running"))
    };
    let count = |side: &str| {
        let all = plugin[side].as_object().into_iter().flat_map(|all| all.values());
        all.filter(|one| one["Healthy"] == true && is_running(&one["AllocID"])).count()
    };
    Ok((count("Controllers"), count("Nodes")))
}

/// Waits until every allocation of the plugin is of its job's newest version, and healthy.
fn await_new_plugins(nomad: &Nomad, count: usize) -> StepResult<()> {
    await_running_plugins(nomad, count)?;
    await_plugins(nomad, 3, 3)
}

/// Waits until so many allocations of the plugin run, all of its job's newest version.
fn await_running_plugins(nomad: &Nomad, count: usize) -> StepResult<()> {
    nomad.until("all plugins are new", || {
        let version = nomad.api("/v1/job/do-csi-plugin")?["Version"].as_u64();
        let all = nomad.api("/v1/job/do-csi-plugin/allocations")?;
        let new = all.as_array().map_or(0, |all| {
            let is_new = |one: &&Value| one["ClientStatus"] == "running" && one["JobVersion"].as_u64() == version;
            all.iter().filter(is_new).count()
        });
        Ok((new == count).then_some(()))
    })
}

fn await_no_plugin(nomad: &Nomad) -> StepResult<()> {
    await_plugins(nomad, 0, 0)
}

/// Submits get-file once more, for this node. Nomad does nothing for a job that it knows, so it must not know it any more.
/// Gives the moment after which its allocation is made.
fn submit_get_file(nomad: &Nomad, node: &str) -> StepResult<u64> {
    let since = nomad.newest_allocation("get-file")?.and_then(|one| one["CreateIndex"].as_u64()).unwrap_or_default();
    // An old version has forgotten it by now.
    drop(nomad.run(&["job", "stop", "-purge", "get-file"]));
    nomad.run_job("get-file.nomad.hcl", &["-detach", &format!("-var=node={node}")])?;
    Ok(since)
}

/// Waits until the get-file that was submitted then has ended well.
fn await_get_file(nomad: &Nomad, since: u64) -> StepResult<()> {
    nomad.until("get-file is complete", || {
        let newest = nomad.newest_allocation("get-file")?.ok_or("no allocation")?;
        let is_new = newest["CreateIndex"].as_u64().is_some_and(|index| index > since);
        let is = newest["ClientStatus"].as_str().unwrap_or_default();
        if is_new && is == "complete" { Ok(Some(())) } else { Err(format!("it is {is}, and new: {is_new}").into()) }
    })
}

fn get_file_on(nomad: &Nomad, node: &str) -> StepResult<()> {
    let since = submit_get_file(nomad, node)?;
    await_get_file(nomad, since)?;
    nomad.give_back("get-file")
}

/// The job of put-file as a text, under another name and for another volume.
fn derived(nomad: &Nomad, job: &str, volume: &str) -> StepResult<String> {
    let text = fs::read_to_string(nomad.file("put-file.nomad.hcl"))?;
    let line = |line: &str| match line.split_once('=') {
        Some((key, _)) if key.trim() == "source" => format!("{key}= \"{volume}\""),
        Some(_) | None => line.replace("job \"put-file\"", &format!("job \"{job}\"")),
    };
    Ok(text.lines().map(line).collect::<Vec<_>>().join("\n"))
}

/// Runs a job on a node that has a volume until it is stopped, and waits until it does.
fn run_holder(nomad: &Nomad, volume: &str, node: &str) -> StepResult<()> {
    let job = format!("holder-{volume}");
    let text = derived(nomad, &job, volume)?.replace("sleep 2", "sleep 100000");
    write(nomad, &format!("{job}.nomad.hcl"), &text)?;
    nomad.run_job(&format!("{job}.nomad.hcl"), &["-detach", &format!("-var=node={node}")])?;
    nomad.await_status(&job, "running").map(drop)
}

/// Makes a volume with a file system and registers it, under its own name.
fn register(cloud: &Cloud, nomad: &Nomad, name: &str) -> StepResult<String> {
    let id = cloud.sim.add_volume(&NewVolume::new(name, 1, "fra1").formatted("xfs"))?;
    cloud.sim.settle()?;
    let spec = fs::read_to_string(nomad.file("blog.volume.hcl"))?;
    let own = |line: &str| match line.split_once('=') {
        Some((key, _)) if key.trim() == "external_id" => format!("{key}= \"{id}\""),
        Some(_) | None => line.replace("\"blog\"", &format!("\"{name}\"")),
    };
    write(nomad, &format!("{name}.volume.hcl"), &spec.lines().map(own).collect::<Vec<_>>().join("\n"))?;
    nomad.run(&["volume", "register", &format!("{name}.volume.hcl")])?;
    Ok(id)
}

fn printed(nomad: &Nomad, allocation: &Value, task: &str, text: &str) -> StepResult<((), String)> {
    let printed = nomad.logs(allocation, task)?;
    ensure(printed == text, || format!("it printed {printed:?}"))?;
    Ok(((), format!("{printed:?}")))
}

/// Waits until the cloud and Nomad agree that nobody has a volume, and gives its id at DigitalOcean.
fn free(cloud: &Cloud, nomad: &Nomad, name: &str) -> StepResult<String> {
    nomad.until(&format!("{name} is free"), || {
        let volume = nomad.api(&format!("/v1/volume/csi/{name}"))?;
        let is_claimed = ["ReadAllocs", "WriteAllocs"]
            .iter()
            .any(|claims| volume[claims].as_object().is_some_and(|all| !all.is_empty()));
        let id = volume["ExternalID"].as_str().unwrap_or_default();
        let holder = cloud.sim.attached_to(id);
        if is_claimed || holder.is_some() {
            return Err(format!("claimed: {is_claimed}, attached to {holder:?}").into());
        }
        Ok(Some(id.to_owned()))
    })
}

/// The name of the droplet that has a volume.
fn where_is(cloud: &Cloud, volume: &str) -> StepResult<String> {
    let holder = cloud.sim.attached_to(volume).ok_or("it is attached to nobody")?;
    let machine = cloud.machines.iter().find(|machine| machine.id == holder).ok_or("no such droplet")?;
    Ok(machine.name.clone())
}

fn await_moved(cloud: &Cloud, nomad: &Nomad, job: &str, from: &str) -> StepResult<()> {
    nomad.until(&format!("{job} has moved"), || {
        let newest = nomad.newest_allocation(job)?.ok_or("no allocation")?;
        let is_away = newest["ClientStatus"] == "running" && newest["NodeName"] != from;
        if is_away && where_is(cloud, job)? != from {
            return Ok(Some(()));
        }
        Err(format!(
            "newest: {} on {}: {}",
            newest["ClientStatus"],
            newest["NodeName"],
            super::nomad::events(Some(&newest))
        )
        .into())
    })
}

fn machine_named<'a>(cloud: &'a Cloud, name: &str) -> StepResult<(usize, &'a Machine)> {
    Ok(cloud.machines.iter().enumerate().find(|(_, machine)| machine.name == name).ok_or("no such droplet")?)
}

/// What a power cut does to the processes of a droplet.
fn cut_power(nomad: &mut Nomad, number: usize, machine: &Machine) -> StepResult<()> {
    nomad.kill_client(number)?;
    kill_containers(machine)?;
    // The kernel's memory goes too, and with it the mounts.
    let directory = Path::new(DATA_DIR).join("client/csi");
    let points = machine.droplet.mounts();
    let points =
        points.iter().filter_map(|line| line.split(' ').nth(4)).filter(|at| Path::new(at).starts_with(&directory));
    for point in points.collect::<Vec<_>>().into_iter().rev() {
        machine.droplet.command(Path::new("umount")).args(["--lazy", point]).status()?;
    }
    Ok(())
}

/// Runs a command in the newest allocation of a job. By the job's name alone, Nomad chooses among all that it knows, also one
/// that a client has just brought back.
fn exec_in(nomad: &Nomad, job: &str, command: &[&str]) -> StepResult<String> {
    let newest = nomad.newest_allocation(job)?.ok_or("no allocation")?;
    let id = newest["ID"].as_str().unwrap_or_default();
    nomad.run(&[&["alloc", "exec", id], command].concat())
}

fn sql(nomad: &Nomad, statement: &str) -> StepResult<()> {
    exec_in(nomad, "postgres", &["psql", "-U", "postgres", "-c", statement]).map(drop)
}

fn insert(nomad: &Nomad, word: &str) -> StepResult<()> {
    sql(nomad, &format!("insert into seen values ('{word}')"))
}

fn await_words(nomad: &Nomad) -> StepResult<Vec<String>> {
    await_words_of(nomad, "postgres")
}

/// What is in the service's table, as soon as the service answers.
fn await_words_of(nomad: &Nomad, job: &str) -> StepResult<Vec<String>> {
    nomad.until("PostgreSQL answers", || {
        let all = exec_in(nomad, job, &["psql", "-U", "postgres", "-t", "-A", "-c", "select word from seen"])?;
        Ok(Some(all.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()))
    })
}

/// Tells the plugin where Nomad has its allocations, and lets it detach what nobody uses.
fn with_allocations(nomad: &Nomad) -> StepResult<()> {
    let file = nomad.file("plugin.nomad.hcl");
    let text = fs::read_to_string(&file)?;
    let mut arguments = format!("\"{ALLOCATIONS}\", \"--do-tag=");
    if !text.contains("--release-unused") {
        arguments = format!("\"--release-unused=2m\", {arguments}");
    }
    let directory = "/opt/nomad/data/alloc:/allocations:ro";
    let text = if text.contains("volumes = [") {
        text.replace("volumes = [", &format!("volumes = [\"{directory}\", "))
    } else {
        text.replace("privileged = true\n", &format!("privileged = true\n        volumes    = [\"{directory}\"]\n"))
    };
    fs::write(file, text.replace("\"--do-tag=", &arguments))?;
    Ok(())
}

/// The running containers of the tasks that hold volumes.
fn holders(machine: &Machine) -> StepResult<Vec<String>> {
    let engine = machine.engine.as_ref().ok_or("no Docker")?;
    let ids = engine.run(&["ps", "--quiet", "--filter=name=put-file"])?;
    Ok(ids.lines().map(str::to_owned).collect())
}

fn kill_containers(machine: &Machine) -> StepResult<()> {
    let engine = machine.engine.as_ref().ok_or("no Docker")?;
    let running = engine.run(&["ps", "--quiet"])?;
    running.lines().try_for_each(|id| engine.run(&["kill", id]).map(drop))?;
    Ok(())
}

/// Everything that the plugins' containers have logged.
fn plugin_logs(cloud: &Cloud) -> StepResult<String> {
    let mut logs = String::new();
    for machine in &cloud.machines {
        let engine = machine.engine.as_ref().ok_or("no Docker")?;
        for id in plugin_containers(machine)? {
            let output = engine.docker().args(["logs", &id]).output()?;
            logs.push_str(&String::from_utf8_lossy(&output.stderr));
            logs.push_str(&String::from_utf8_lossy(&output.stdout));
        }
    }
    Ok(logs)
}

/// The running containers of the plugin's image.
fn plugin_containers(machine: &Machine) -> StepResult<Vec<String>> {
    let engine = machine.engine.as_ref().ok_or("no Docker")?;
    let ids = engine.run(&["ps", "--quiet", "--filter=label=org.opencontainers.image.title=do-csi-plugin"])?;
    Ok(ids.lines().map(str::to_owned).collect())
}

fn lines_with(text: &str, part: &str) -> String {
    text.lines().filter(|line| line.contains(part)).map(str::trim).collect::<Vec<_>>().join(", ")
}

fn edit(file: &Path, old: &str, new: &str) -> StepResult<()> {
    let text = fs::read_to_string(file)?;
    ensure(text.contains(old), || format!("{} does not have {old}", file.display()))?;
    fs::write(file, text.replace(old, new))?;
    Ok(())
}

fn write(nomad: &Nomad, name: &str, text: &str) -> StepResult<()> {
    let file: PathBuf = nomad.file(name);
    fs::write(file, text)?;
    Ok(())
}
