//! Examples of the quota, with a clock that is moved by hand.

use super::*;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn headers(limit: u32, remaining: u32) -> RateHeaders {
    RateHeaders { limit: Some(limit), remaining: Some(remaining), ..RateHeaders::default() }
}

/// One call that goes if it may; otherwise what holds it back, and the line is left.
fn send(quota: &mut Quota, class: Class, now: Instant) -> Result<(), HeldBack> {
    let ticket = quota.join(class);
    match quota.take(class, ticket, now) {
        None => Ok(()),
        Some(held) => {
            quota.leave(class, ticket);
            Err(held)
        }
    }
}

/// The same, and its reply, which says nothing.
fn call(quota: &mut Quota, class: Class, now: Instant) -> Result<(), HeldBack> {
    send(quota, class, now)?;
    quota.answered(&RateHeaders::default(), now);
    quota.finish();
    Ok(())
}

/// The times, from the start, of as many calls as go through within `span`, each as soon as it may.
fn times_of_calls(quota: &mut Quota, class: Class, start: Instant, span: Duration) -> Vec<Duration> {
    let (mut now, mut times) = (start, Vec::new());
    while now < start + span {
        match call(quota, class, now) {
            Ok(()) => times.push(now - start),
            Err(held) => now += held.wait.max(ms(1)),
        }
        assert!(times.len() < 100_000, "no restraint at all");
    }
    times
}

/// The most calls in any such span.
fn busiest(times: &[Duration], span: Duration) -> usize {
    times.iter().map(|from| times.iter().filter(|at| (*from..*from + span).contains(at)).count()).max().unwrap_or(0)
}

#[test]
fn each_minute_is_used_and_none_has_more_calls_than_the_limit() {
    for (class, least, most) in [(Class::Look, 245, 250), (Class::Essential, 235, 240), (Class::Deferrable, 195, 200)] {
        let times = times_of_calls(&mut Quota::new(0.0), class, Instant::now(), secs(305));
        assert!(busiest(&times, secs(60)) <= most, "{class:?}: {}", busiest(&times, secs(60)));
        assert!(times.len() >= least * 5, "{class:?}: {} in five minutes", times.len());
        // DigitalOcean may as well count from the full minute on.
        for fixed in 0..5 {
            let minute = secs(fixed * 60)..secs(fixed * 60 + 60);
            assert!(times.iter().filter(|at| minute.contains(at)).count() <= most, "{class:?}");
        }
    }
}

#[test]
fn a_burst_is_spread_over_seconds_but_for_looks() {
    let times = times_of_calls(&mut Quota::new(0.0), Class::Essential, Instant::now(), secs(30));
    assert!(busiest(&times, secs(1)) <= 40, "{}", busiest(&times, secs(1)));
    let times = times_of_calls(&mut Quota::new(0.0), Class::Look, Instant::now(), secs(1));
    assert_eq!(times.len(), 250);
}

#[test]
fn what_is_less_urgent_leaves_room_for_what_is_more() {
    let (mut quota, mut now) = (Quota::new(0.0), Instant::now());
    let mut sent = Vec::new();
    for class in [Class::Deferrable, Class::Essential, Class::Look] {
        let before = quota.used().0;
        loop {
            match call(&mut quota, class, now) {
                Ok(()) => {}
                Err(held) if held.wait <= secs(1) => now += held.wait,
                Err(_) => break,
            }
        }
        sent.push(quota.used().0 - before);
    }
    assert_eq!(sent, [200, 40, 10]);
}

#[test]
fn those_who_wait_have_reserved_nothing() {
    let (mut quota, now) = (Quota::new(1.0), Instant::now());
    call(&mut quota, Class::Essential, now).unwrap();
    let lists: Vec<u64> = (0..100).map(|_| quota.join(Class::Deferrable)).collect();
    for ticket in &lists {
        assert!(quota.take(Class::Deferrable, *ticket, now).is_some());
    }
    // A hundred wait a second each, and an attach goes before them all.
    assert_eq!(call(&mut quota, Class::Essential, now).unwrap_err().wait, secs(1));
    assert_eq!(call(&mut quota, Class::Essential, now + secs(1)), Ok(()));
    assert_eq!(quota.take(Class::Deferrable, lists[1], now + secs(2)).map(|held| held.wait), Some(secs(1)));
    assert_eq!(quota.take(Class::Deferrable, lists[0], now + secs(2)), None);
}

#[test]
fn what_was_not_sent_does_not_count() {
    let (mut quota, now) = (Quota::new(0.0), Instant::now());
    for _ in 0..10_000 {
        send(&mut quota, Class::Essential, now).unwrap();
        quota.give_back(now);
        quota.finish();
    }
    assert_eq!((quota.used().0, quota.in_flight), (0, 0));
}

#[test]
fn a_limit_that_alternates_does_not_switch_the_restraint_off() {
    let (mut quota, start) = (Quota::new(0.0), Instant::now());
    let (mut now, mut sent) = (start, 0);
    while now < start + secs(60) {
        match send(&mut quota, Class::Look, now) {
            Ok(()) => {
                sent += 1;
                quota.answered(&RateHeaders { limit: Some(5000 + sent % 2), ..RateHeaders::default() }, now);
                quota.finish();
            }
            Err(held) => now += held.wait.max(ms(1)),
        }
        assert!(sent <= 250, "{sent}");
    }
}

#[test]
fn a_higher_limit_of_the_token_makes_the_pace_faster() {
    let (mut quota, now) = (Quota::new(0.0), Instant::now());
    quota.answered(&RateHeaders { limit: Some(5_000_000), ..RateHeaders::default() }, now);
    assert!(times_of_calls(&mut quota, Class::Deferrable, now, secs(1)).len() > 10_000);
}

#[test]
fn what_others_use_counts_as_well() {
    let (mut quota, now) = (Quota::new(0.0), Instant::now());
    send(&mut quota, Class::Look, now).unwrap();
    quota.answered(&headers(5000, 4000), now);
    quota.finish();
    // Another program makes 200 calls within five seconds, and this one sees it in its next reply.
    send(&mut quota, Class::Look, now + secs(5)).unwrap();
    quota.answered(&headers(5000, 3799), now + secs(5));
    quota.finish();
    assert_eq!(quota.used(), (202, 200));
    let held = call(&mut quota, Class::Deferrable, now + secs(6)).unwrap_err();
    assert!(held.wait > secs(50), "{held}");
    assert!(held.to_string().contains("200 of them by others"), "{held}");
    assert_eq!(call(&mut quota, Class::Essential, now + secs(6)), Ok(()));
    assert_eq!(call(&mut quota, Class::Deferrable, now + secs(67)), Ok(()));
}

#[test]
fn own_calls_are_not_taken_for_those_of_others_in_whatever_order_the_replies_come() {
    let (mut quota, now) = (Quota::new(0.0), Instant::now());
    send(&mut quota, Class::Look, now).unwrap();
    quota.answered(&headers(5000, 4000), now);
    quota.finish();
    for _ in 0..30 {
        send(&mut quota, Class::Look, now).unwrap();
    }
    // The replies to the second half come first, each half backwards.
    for remaining in (3970..3985).chain(3985..4000) {
        quota.answered(&headers(5000, remaining), now + ms(10));
        quota.finish();
    }
    assert_eq!(quota.used(), (31, 0));
    // Calls expire, so more are left after a while.
    send(&mut quota, Class::Look, now + secs(20)).unwrap();
    quota.answered(&headers(5000, 4500), now + secs(20));
    quota.finish();
    assert_eq!((quota.used(), quota.reading.unwrap().remaining), ((32, 0), 4500));
}

#[test]
fn below_the_reserve_lists_slow_down_before_essential_calls_and_looks_never() {
    let now = Instant::now();
    let wait = |class, remaining| {
        let mut quota = Quota::new(0.0);
        send(&mut quota, Class::Look, now).unwrap();
        quota.answered(&headers(5000, remaining), now);
        quota.finish();
        call(&mut quota, class, now).err().map_or(Duration::ZERO, |held| held.wait)
    };
    assert_eq!([4000, 500].map(|left| wait(Class::Deferrable, left)), [Duration::ZERO; 2]);
    assert_eq!([4000, 500, 250, 100].map(|left| wait(Class::Essential, left)), [Duration::ZERO; 4]);
    assert_eq!([4000, 500, 250, 1].map(|left| wait(Class::Look, left)), [Duration::ZERO; 4]);
    assert_eq!([250, 0].map(|left| wait(Class::Deferrable, left)), [secs(5) / 2, secs(5)]);
    assert_eq!([50, 0].map(|left| wait(Class::Essential, left)), [secs(1) / 2, secs(1)]);
}

#[test]
fn what_a_header_said_is_forgotten_after_a_while() {
    let (mut quota, now) = (Quota::new(0.0), Instant::now());
    quota.answered(&headers(5000, 0), now);
    assert_eq!(call(&mut quota, Class::Deferrable, now + secs(61)), Ok(()));
}

#[test]
fn a_refusal_stops_every_class_for_as_long_as_it_says_and_a_random_while() {
    let now = Instant::now();
    for (chance, wait) in [(0.0, 29_000), (0.5, 32_625), (1.0, 36_250)] {
        let mut quota = Quota::new(0.0);
        quota.refused(Some(secs(29)), chance, now);
        // A second refusal that asks for less does not shorten the first, and does not draw again.
        quota.refused(Some(secs(3)), 1.0, now);
        for class in [Class::Look, Class::Essential, Class::Deferrable] {
            let held = call(&mut quota, class, now).unwrap_err();
            assert_eq!((held.wait, held.by), (ms(wait), Restraint::Refused));
        }
        assert_eq!(call(&mut quota, Class::Deferrable, now + ms(wait)), Ok(()));
    }
    let mut quota = Quota::new(0.0);
    quota.refused(Some(secs(3000)), 0.0, now);
    assert_eq!(call(&mut quota, Class::Look, now).unwrap_err().wait, secs(60), "one call a minute looks if it is over");
    let mut quota = Quota::new(0.0);
    quota.refused(None, 0.0, now);
    assert_eq!(call(&mut quota, Class::Look, now).unwrap_err().wait, secs(5));
}

#[test]
fn after_a_stop_one_call_tries_and_each_reply_lets_twice_as_many_go() {
    let (mut quota, now) = (Quota::new(0.0), Instant::now());
    quota.refused(Some(secs(3)), 0.0, now);
    let later = now + secs(4);
    let mut at_once = Vec::new();
    for _ in 0..6 {
        let mut under_way = 0;
        while send(&mut quota, Class::Look, later).is_ok() {
            under_way += 1;
        }
        at_once.push(under_way);
        quota.answered(&RateHeaders::default(), later);
        (0..under_way).for_each(|_| quota.finish());
    }
    assert_eq!(at_once, [1, 2, 4, 8, 16, 32]);
    // One that got no reply proves nothing.
    quota.refused(Some(secs(3)), 0.0, later);
    let later = later + secs(4);
    send(&mut quota, Class::Look, later).unwrap();
    quota.finish();
    send(&mut quota, Class::Look, later).unwrap();
    assert!(send(&mut quota, Class::Look, later).is_err());
}

#[test]
fn the_operators_limit_spreads_all_calls_evenly() {
    let (mut quota, now) = (Quota::new(2.0), Instant::now());
    let times = times_of_calls(&mut quota, Class::Essential, now, secs(2));
    assert_eq!(times, [0, 500, 1000, 1500].map(ms));
    assert_eq!(call(&mut quota, Class::Essential, now + secs(10)), Ok(()));
    // The third in line waits for the two before it as well.
    let tickets = [(); 3].map(|()| quota.join(Class::Essential));
    assert_eq!(quota.take(Class::Essential, tickets[2], now + secs(10)).unwrap().wait, ms(1500));
}

#[test]
fn no_limit_of_the_operator_is_no_wait() {
    for off in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300] {
        let (mut quota, now) = (Quota::new(off), Instant::now());
        for _ in 0..30 {
            assert_eq!(call(&mut quota, Class::Essential, now), Ok(()), "{off}");
        }
    }
}

#[test]
fn what_is_to_come_counts_as_used_and_so_does_what_others_go_on_using() {
    let start = Instant::now();
    let mut quota = Quota::new(0.0);
    let none = Expected::default();
    assert_eq!(quota.used_part(none, start), 0.0);
    assert_eq!(quota.used_part(Expected { own: 100, others: 25 }, start), 0.5);
    assert_eq!(quota.used_part(Expected { own: 1000, ..none }, start), 1.0);
    let mut reply = |remaining, now| {
        send(&mut quota, Class::Look, now).unwrap();
        quota.answered(&headers(5000, remaining), now);
        quota.finish();
        quota.used_part(none, now)
    };
    assert!(reply(4999, start) < 0.01);
    // One other in the second is next to nothing, and ten in a second are too many.
    assert!(reply(4997, start + ms(900)) < 0.15);
    assert!(reply(4986, start + ms(1000)) > 0.9);
    assert_eq!(quota.used_part(Expected { others: 250, ..none }, start + secs(10)), 1.0, "they may go on");
    send(&mut quota, Class::Look, start + secs(20)).unwrap();
    quota.answered(&headers(5000, 4985), start + secs(20));
    assert!(quota.used_part(Expected { others: 250, ..none }, start + secs(30)) < 0.1, "they have stopped");
}
