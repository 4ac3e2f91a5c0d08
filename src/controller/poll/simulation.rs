//! Plays plans of looks against drawn durations, thousands of them: a first action, steady and unsteady ones, two speeds, a
//! change of speed. `cargo test --lib poll::` prints the table.

use std::io::{self, Write};

use super::*;

/// From a look being due to its reply.
const REPLY: f64 = 0.004;

/// What decides when to look.
#[derive(Debug, Clone, Copy)]
enum Plan {
    /// The program's.
    Expected,
    /// Every so many seconds.
    Every(f64),
    /// First after so many seconds, and each time at so many times the time since the start.
    Growing(f64, f64),
}

const PLANS: [(&str, Plan); 5] = [
    ("expected", Plan::Expected),
    ("every 1 s", Plan::Every(1.0)),
    ("every 0.5 s", Plan::Every(0.5)),
    ("times 1.25", Plan::Growing(0.2, 1.25)),
    ("times 1.5", Plan::Growing(0.2, 1.5)),
];

/// One action: how long it took, how many looks it had, and how late its end was seen, in seconds.
#[derive(Debug, Clone, Copy)]
struct Seen {
    took: f64,
    looks: u32,
    late: f64,
}

fn see(plan: Plan, pace: &Pace, kind: ActionKind, took: f64) -> Seen {
    let mut expected = matches!(plan, Plan::Expected).then(|| pace.begin(kind, 0.0));
    let (mut looks, mut at) = (0, 0.0);
    loop {
        let due = match (plan, &expected) {
            (Plan::Every(step), _) => at + step,
            (Plan::Growing(first, ratio), _) => (at * ratio).max(first),
            (Plan::Expected, expected) => expected.as_ref().unwrap().due().as_secs_f64(),
        };
        looks += 1;
        assert!(looks < 1000, "endless: {plan:?}");
        at = due + REPLY;
        if due >= took {
            if let Some(sample) = expected.and_then(|looks| looks.finished(Duration::from_secs_f64(at))) {
                pace.learn(sample);
            }
            return Seen { took, looks, late: at - took };
        }
        if let Some(looks) = &mut expected {
            looks.still_running(Duration::from_secs_f64(at));
        }
    }
}

/// A fixed sequence of numbers.
struct Noise(u64);

impl Noise {
    /// From 0 to 1.
    fn even(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(self.0 >> 32).unwrap()) / f64::from(u32::MAX)
    }

    /// Around `middle`, mostly no farther from it than the part `spread` of it.
    fn around(&mut self, middle: f64, spread: f64) -> f64 {
        let normal = (0..12).map(|_| self.even()).sum::<f64>() - 6.0;
        (middle * (1.0 + spread * normal)).max(0.05)
    }
}

/// What is drawn: attaches and detaches in turn.
#[derive(Debug, Clone, Copy)]
enum Scene {
    /// The first attach of a process.
    First(f64),
    /// Around one duration, mostly within a part of it; the first five pairs are not counted.
    Steady(f64, f64),
    /// Either of two durations.
    Two(f64, f64),
    /// Seven volumes of one droplet are attached and detached, after fifteen that took another time.
    Changed(f64, f64),
}

const SCENES: [Scene; 18] = [
    Scene::First(0.3),
    Scene::First(1.3),
    Scene::First(5.2),
    Scene::Steady(0.3, 0.0),
    Scene::Steady(1.3, 0.0),
    Scene::Steady(5.2, 0.0),
    Scene::Steady(0.3, 0.05),
    Scene::Steady(1.3, 0.05),
    Scene::Steady(5.2, 0.05),
    Scene::Steady(1.3, 0.1),
    Scene::Steady(5.2, 0.1),
    Scene::Two(1.3, 5.2),
    Scene::Changed(1.3, 0.3),
    Scene::Changed(5.2, 0.3),
    Scene::Changed(5.2, 1.3),
    Scene::Changed(5.2, 2.6),
    Scene::Changed(0.3, 1.3),
    Scene::Changed(1.3, 5.2),
];

fn play(plan: Plan, scene: Scene) -> Vec<Seen> {
    let mut noise = Noise(42);
    let mut seen = Vec::new();
    for _ in 0..10 {
        let pace = Pace::new();
        let pairs = |pairs: usize, draw: &mut dyn FnMut() -> f64| {
            let kinds = iter::repeat_n([ActionKind::Attach, ActionKind::Detach], pairs).flatten();
            kinds.map(|kind| see(plan, &pace, kind, draw())).collect::<Vec<_>>()
        };
        match scene {
            Scene::First(took) => seen.push(see(plan, &Pace::new(), ActionKind::Attach, noise.around(took, 0.05))),
            Scene::Steady(took, spread) => {
                seen.extend(pairs(30, &mut || noise.around(took, spread)).into_iter().skip(10));
            }
            Scene::Two(one, other) => {
                let mut draw = || noise.even();
                let mut either = || if draw() < 0.5 { one } else { other };
                seen.extend(pairs(30, &mut either).into_iter().skip(10));
            }
            Scene::Changed(before, after) => {
                pairs(15, &mut || noise.around(before, 0.02));
                seen.extend(pairs(7, &mut || noise.around(after, 0.02)));
            }
        }
    }
    seen
}

/// Looks an action; the median and the 99th of 100 of the lateness, as a part of the action; all lateness, as a part of all time.
fn judge(seen: &[Seen]) -> [f64; 4] {
    let many = f64::from(u32::try_from(seen.len()).unwrap());
    let mut late: Vec<_> = seen.iter().map(|one| one.late / one.took).collect();
    late.sort_by(f64::total_cmp);
    let sum = |of: fn(&Seen) -> f64| seen.iter().map(of).sum::<f64>();
    let looks = sum(|one| f64::from(one.looks)) / many;
    [looks, late[late.len() / 2], late[late.len() * 99 / 100], sum(|one| one.late) / sum(|one| one.took)]
}

#[test]
fn the_plan_is_seldom_late_and_looks_seldom() {
    let mut table = io::stdout();
    writeln!(table, "{:<22}{}", "", PLANS.map(|(name, _)| format!("{name:>24}")).concat()).unwrap();
    writeln!(table, "{:<22}{}", "", "   looks median p99 all ".repeat(PLANS.len())).unwrap();
    for scene in SCENES {
        let judged = PLANS.map(|(_, plan)| judge(&play(plan, scene)));
        let row = judged.map(|[looks, median, p99, all]| {
            format!("{looks:8.1}{:6.0}%{:4.0}%{:3.0}%", 100.0 * median, 100.0 * p99, 100.0 * all)
        });
        writeln!(table, "{:<22}{}", format!("{scene:?}"), row.concat()).unwrap();
        let [looks, median, p99, all] = judged[0];
        let told = format!("{scene:?}: {looks} looks, {median} {p99} {all}");
        match scene {
            Scene::First(_) => assert!(looks <= 10.0 && all <= 0.7, "{told}"),
            Scene::Steady(took, spread) => {
                assert!(looks <= 4.0 && median <= (0.1 / took).max(0.08), "{told}");
                assert!(spread > 0.05 || p99 <= (0.1 / took).max(0.25), "{told}");
            }
            Scene::Two(..) => assert!(looks <= 4.5 && median <= 0.08, "{told}"),
            Scene::Changed(_, after) => assert!(looks <= 6.0 && all <= (0.2 / after).max(0.15), "{told}"),
        }
    }
}

#[test]
fn many_actions_at_once_are_noticed_as_soon_as_one() {
    let pace = Pace::new();
    for _ in 0..20 {
        see(Plan::Expected, &pace, ActionKind::Attach, 5.0);
    }
    let begun: Vec<_> = (0..15).map(|_| pace.begin(ActionKind::Attach, 0.0)).collect();
    for looks in begun {
        assert!(looks.due() < Duration::from_secs_f64(5.3), "{:?}", looks.due());
    }
}

#[test]
fn looks_that_told_nothing_teach_nothing() {
    let pace = Pace::new();
    see(Plan::Expected, &pace, ActionKind::Attach, 0.3);
    let mut looks = pace.begin(ActionKind::Attach, 0.0);
    looks.told_nothing(Duration::from_millis(300));
    assert!(looks.due() > Duration::from_millis(300));
    assert_eq!(looks.finished(Duration::from_secs(90)), None);
    let joined = pace.join(ActionKind::Attach, 0.0);
    assert!(joined.due() < Duration::from_millis(500), "it may be about to end: {:?}", joined.due());
    assert_eq!(joined.finished(Duration::from_millis(100)), None);
}

#[test]
fn looks_are_fewer_where_the_quota_is_short() {
    let pace = Pace::new();
    let count = |used: f64| {
        let mut looks = pace.begin(ActionKind::Attach, used);
        let mut count = 1;
        while looks.due() < Duration::from_millis(4500) {
            looks.still_running(looks.due());
            count += 1;
        }
        count
    };
    assert!(count(0.0) > count(0.7) && count(0.7) > count(1.0), "{} {} {}", count(0.0), count(0.7), count(1.0));
    assert!(count(1.0) <= 4, "{}", count(1.0));
}

#[test]
fn one_endless_action_does_not_spoil_the_rest() {
    let pace = Pace::new();
    let see = |took| see(Plan::Expected, &pace, ActionKind::Attach, took);
    for _ in 0..20 {
        see(4.0);
    }
    assert!(see(300.0).looks < 60);
    assert!(see(4.0).late < 1.0);
    assert!(see(4.0).late < 0.5);
}
