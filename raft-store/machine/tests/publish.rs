//! Producers and publishing, one promise per test (ARCHITECTURE section 5).

mod common;

use common::{Log, Person, message, outcomes, publish, short};
use unibus_machine::key::range_of_answers;
use unibus_machine::{Event, Rows};
use unibus_proto::limits::{BODY_BYTES_MAX, PRODUCER_WINDOW};
use unibus_proto::log::proposal::Command;
use unibus_proto::log::{PublishGroup, Tick};
use unibus_proto::v1::{Header, OutgoingMessage, RoomRole, RosterOp};

const DAY_MS: u64 = 24 * 3600 * 1_000;

/// A room of alice's, with bob as member and carol as reader.
fn room() -> (Log, Person, Person, Person) {
    let (alice, bob, carol) = (Person::new("alice"), Person::new("bob"), Person::new("carol"));
    let mut log = Log::shard();
    log.apply(alice.create("a.b"));
    log.add_member(&alice, "a.b", &bob, RoomRole::Member);
    log.add_member(&alice, "a.b", &carol, RoomRole::Reader);
    (log, alice, bob, carol)
}

#[test]
fn a_retry_gets_the_first_answer() {
    let (mut log, alice, ..) = room();
    let group = alice.group("a.b", "p", 1, &["one", "two"]);
    assert_eq!(short(&log.publish(group.clone())), ["2 stored at 3"]);
    assert_eq!(short(&log.publish(group)), ["2 duplicate of 3"]);
    let overlapping = alice.group("a.b", "p", 2, &["two", "three"]);
    assert_eq!(short(&log.publish(overlapping)), ["1 duplicate of 4", "1 stored at 5"]);
}

#[test]
fn a_gap_changes_nothing_and_names_the_expected_number() {
    let (mut log, alice, ..) = room();
    log.publish(alice.group("a.b", "p", 1, &["one"]));
    let before = log.machine.rows().clone();
    let outcomes = log.publish(alice.group("a.b", "p", 3, &["three", "four"]));
    assert_eq!(short(&outcomes), ["2 OUT_OF_ORDER"]);
    let Some(unibus_proto::v1::publish_outcome::Outcome::Reject(reject)) = &outcomes[0].outcome else { panic!() };
    assert_eq!(reject.expected, 2);
    assert_eq!(log.machine.rows(), &before);
}

#[test]
fn the_same_number_with_other_content_is_refused_and_the_rest_goes_on() {
    let (mut log, alice, ..) = room();
    log.publish(alice.group("a.b", "p", 1, &["one", "two"]));
    let group = alice.group("a.b", "p", 1, &["one", "other", "three"]);
    assert_eq!(short(&log.publish(group)), ["1 duplicate of 3", "1 ID_REUSED", "1 stored at 5"]);
    let mut group = alice.group("a.b", "p", 1, &["one"]);
    group.messages[0].headers[0].value = "de".into();
    assert_eq!(short(&log.publish(group)), ["1 ID_REUSED"]);
}

#[test]
fn a_producer_belongs_to_the_device_that_opened_it() {
    let (mut log, alice, bob, carol) = room();
    log.publish(alice.group("a.b", "p", 1, &["one"]));
    let laptop = Person::with_device("alice", "laptop");
    assert_eq!(short(&log.publish(laptop.group("a.b", "p", 1, &["one"]))), ["1 ID_REUSED"]);
    assert_eq!(short(&log.publish(bob.group("a.b", "p", 1, &["one"]))), ["1 ID_REUSED"]);
    assert_eq!(short(&log.publish(carol.group("a.b", "p", 1, &["one"]))), ["1 FORBIDDEN"]);
    let mallory = Person::new("mallory");
    assert_eq!(short(&log.publish(mallory.group("a.b", "p", 1, &["one"]))), ["1 ROOM_NOT_FOUND"]);
    assert_eq!(short(&log.publish(alice.group("a.b", "p", 2, &["two"]))), ["1 stored at 4"]);
}

#[test]
fn a_refusal_uses_its_number_up_and_is_given_again() {
    let (mut log, alice, bob, carol) = room();
    let group = carol.group("a.b", "p", 1, &["no"]);
    let first = log.publish(group.clone());
    assert_eq!(short(&first), ["1 FORBIDDEN"]);
    log.roster(&alice, "a.b", |event| {
        event.set_op(RosterOp::Role);
        event.subject_user = "carol".into();
        event.set_role(RoomRole::Member);
    });
    assert_eq!(log.publish(group), first, "also after access was given");
    assert_eq!(short(&log.publish(carol.group("a.b", "p", 2, &["yes"]))), ["1 stored at 4"]);

    let mut group = bob.group("a.b", "q", 1, &["one", "", "three"]);
    group.messages[1].body = vec![0; BODY_BYTES_MAX + 1].into();
    let first = log.publish(group.clone());
    assert_eq!(short(&first), ["1 stored at 5", "1 INVALID", "1 stored at 6"]);
    let again = log.publish(group);
    assert_eq!(short(&again), ["1 duplicate of 5", "1 INVALID", "1 duplicate of 6"]);
    assert_eq!(first[1], again[1], "to the letter");
}

#[test]
fn a_removed_member_publishes_nothing_after_the_removal_but_hears_his_first_answers() {
    let (mut log, alice, bob, _) = room();
    let group = bob.group("a.b", "p", 1, &["one"]);
    log.publish(group.clone());
    log.roster(&alice, "a.b", |event| {
        event.set_op(RosterOp::Remove);
        event.subject_user = "bob".into();
    });
    assert_eq!(short(&log.publish(group)), ["1 duplicate of 3"]);
    assert_eq!(short(&log.publish(bob.group("a.b", "p", 2, &["two", "three"]))), ["2 ROOM_NOT_FOUND"]);
    assert_eq!(short(&log.publish(bob.group("a.b", "p", 9, &["x"]))), ["1 ROOM_NOT_FOUND"], "no number is expected");
}

#[test]
fn a_missing_room_looks_like_one_without_access() {
    let (mut log, ..) = room();
    let mallory = Person::new("mallory");
    assert_eq!(short(&log.publish(mallory.group("no.where", "p", 1, &["x"]))), ["1 ROOM_NOT_FOUND"]);
    assert_eq!(short(&log.publish(mallory.group("a.b", "p", 1, &["x"]))), ["1 ROOM_NOT_FOUND"]);
}

#[test]
fn a_producer_is_opened_by_number_one_within_a_day() {
    let (mut log, alice, ..) = room();
    assert_eq!(short(&log.publish(alice.group("a.b", "p", 2, &["two"]))), ["1 UNKNOWN_PRODUCER"]);
    let opened = |opened_ms| PublishGroup { opened_ms, ..alice.group("a.b", "p", 1, &["one"]) };
    log.at_ms = 2 * DAY_MS;
    assert_eq!(short(&log.publish(opened(DAY_MS))), ["1 UNKNOWN_PRODUCER"], "a day old to the millisecond");
    assert_eq!(short(&log.publish(opened(2 * DAY_MS + 600_001))), ["1 UNKNOWN_PRODUCER"], "ten minutes ahead");
    assert_eq!(short(&log.publish(opened(DAY_MS + 1))), ["1 stored at 3"]);
}

#[test]
fn a_retired_producer_cannot_be_opened_again_by_a_late_retry() {
    let (mut log, alice, ..) = room();
    let group = PublishGroup { opened_ms: 1_000 + 600_000, ..alice.group("a.b", "p", 1, &["one"]) };
    log.publish(group.clone());
    assert_eq!(log.machine.next_deadline(), Some(1_000 + 600_000 + DAY_MS));
    log.at_ms = 1_000 + DAY_MS + 600_000 - 1;
    log.apply(Command::Tick(Tick {}));
    assert_eq!(short(&log.publish(group.clone())), ["1 duplicate of 3"], "still known");
    log.at_ms += 1;
    log.apply(Command::Tick(Tick {}));
    assert_eq!(short(&log.publish(group)), ["1 UNKNOWN_PRODUCER"]);
    assert_eq!(log.machine.next_deadline(), None);
}

#[test]
fn use_moves_the_deadline_of_a_producer() {
    let (mut log, alice, ..) = room();
    log.publish(alice.group("a.b", "p", 1, &["one"]));
    log.at_ms = 1_000 + DAY_MS / 2;
    log.publish(alice.group("a.b", "p", 2, &["two"]));
    log.at_ms = log.machine.next_deadline().unwrap();
    log.apply(Command::Tick(Tick {}));
    assert_eq!(log.machine.next_deadline(), Some(1_000 + DAY_MS / 2 + DAY_MS));
    assert_eq!(short(&log.publish(alice.group("a.b", "p", 2, &["two"]))), ["1 duplicate of 4"]);
}

#[test]
fn sixty_four_live_producers_per_user_and_room() {
    let (mut log, alice, bob, _) = room();
    for at in 0..64 {
        log.publish(alice.group("a.b", &format!("p{at}"), 1, &["x"]));
    }
    assert_eq!(short(&log.publish(alice.group("a.b", "one more", 1, &["x"]))), ["1 QUOTA_EXCEEDED"]);
    assert_eq!(short(&log.publish(bob.group("a.b", "bobs", 1, &["x"]))), ["1 stored at 67"]);
    log.at_ms += DAY_MS + 1;
    log.apply(Command::Tick(Tick {}));
    let group = PublishGroup { opened_ms: log.at_ms, ..alice.group("a.b", "one more", 1, &["x"]) };
    assert_eq!(short(&log.publish(group)), ["1 stored at 68"]);
}

#[test]
fn answers_of_the_last_1024_numbers_are_kept_whatever_lies_between() {
    let (mut log, alice, bob, _) = room();
    // Two producers take turns, so that no two sequences of one are consecutive.
    for number in 1..=PRODUCER_WINDOW + 200 {
        let body = format!("m{number}");
        let (a, b) = (alice.group("a.b", "p", number, &[&body]), bob.group("a.b", "q", number, &[&body]));
        let entry = publish(vec![a, b]);
        let proposal = unibus_proto::log::Proposal { at_ms: 1_000, command: Some(entry) };
        log.machine.apply(unibus_machine::Entry { group: common::SHARD, index: number, term: 1 }, proposal);
    }
    log.machine.check().unwrap();
    let first_kept = 200 + 1;
    let at = |number: u64| 3 + 2 * (number - 1);
    for number in [first_kept, first_kept + 1, 700, PRODUCER_WINDOW + 200] {
        let group = alice.group("a.b", "p", number, &[&format!("m{number}")]);
        assert_eq!(short(&log.publish(group)), [format!("1 duplicate of {}", at(number))]);
        let group = alice.group("a.b", "p", number, &["other"]);
        assert_eq!(short(&log.publish(group)), ["1 ID_REUSED"]);
    }
    // Older than the window: 64 runs are kept without digests, then nothing but that it was decided.
    let group = alice.group("a.b", "p", 150, &["m150"]);
    assert_eq!(short(&log.publish(group)), [format!("1 duplicate of {}", at(150))]);
    let group = alice.group("a.b", "p", 5, &["m5"]);
    assert_eq!(short(&log.publish(group)), ["1 duplicate of 0"], "its place is not kept, but it is not stored twice");
}

#[test]
fn an_uninterrupted_producer_keeps_all_its_answers() {
    let (mut log, alice, ..) = room();
    let group = |first: u64| {
        let bodies: Vec<String> = (first..first + 250).map(|number| format!("m{number}")).collect();
        alice.group("a.b", "p", first, &bodies.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for first in (1..20_000).step_by(250) {
        assert_eq!(short(&log.publish(group(first))), [format!("250 stored at {}", first + 2)]);
    }
    for first in [1, 251, 9_001, 19_751] {
        assert_eq!(short(&log.publish(group(first))), [format!("250 duplicate of {}", first + 2)]);
    }
    let (from, to) = range_of_answers(common::room_id("a.b"), common::producer_id("p"));
    assert_eq!(log.machine.rows().scan(&from, &to, 100).len(), 18, "17 pages and the oldest run");
}

#[test]
fn malformed_groups_are_refused_and_their_neighbours_are_not() {
    let (mut log, alice, ..) = room();
    let good = || alice.group("a.b", "p", 1, &["one"]);
    let bad: Vec<(&str, PublishGroup)> = vec![
        ("room", PublishGroup { room_id: vec![1; 15].into(), ..good() }),
        ("user", PublishGroup { user: "Not A Handle".into(), ..good() }),
        ("device", PublishGroup { device_id: Default::default(), ..good() }),
        ("producer", PublishGroup { producer_id: vec![1; 9].into(), ..good() }),
        ("number 0", PublishGroup { first_number: 0, ..good() }),
        ("number overflow", PublishGroup { first_number: u64::MAX, ..good() }),
        ("no messages", PublishGroup { messages: vec![], ..good() }),
        ("257 messages", PublishGroup { messages: vec![message("x"); 257], ..good() }),
    ];
    for (at, (what, bad)) in bad.into_iter().enumerate() {
        let count = bad.messages.len();
        let neighbour = alice.group("a.b", "ok", at as u64 + 1, &["x"]);
        let groups = outcomes(log.answer(publish(vec![bad, neighbour])));
        assert_eq!(short(&groups[0]), [format!("{count} INVALID")], "{what}");
        assert_eq!(short(&groups[1]), [format!("1 stored at {}", 3 + at)], "{what}");
    }
}

#[test]
fn header_limits_are_checked() {
    let (mut log, alice, ..) = room();
    let header = |name: &str, value: String| Header { name: name.into(), value };
    let bad = [
        vec![header("", String::new())],
        vec![header(&"n".repeat(129), String::new())],
        vec![header("a\nb", String::new())],
        vec![header("n", "v".repeat(4097))],
        vec![header("n", "v".into()); 65],
        (0..5).map(|_| header("n", "v".repeat(4000))).collect(),
    ];
    for (at, headers) in bad.into_iter().enumerate() {
        let messages = vec![OutgoingMessage { headers, body: Default::default() }];
        let group = PublishGroup { messages, ..alice.group("a.b", "p", at as u64 + 1, &[]) };
        assert_eq!(short(&log.publish(group)), ["1 INVALID"], "headers {at}");
    }
}

#[test]
fn deliveries_are_consecutive_and_segments_are_cut_by_bytes() {
    let (log, alice, bob, _) = room();
    let mut log = Log { machine: log.machine.with_segment_bytes(4_000), ..log };
    let open = log.machine.group_row().segment;
    let body = "x".repeat(3_000);
    let batch = vec![alice.group("a.b", "p", 1, &[&body, &body]), bob.group("a.b", "q", 1, &["y"])];
    let events = log.apply(publish(batch)).events;
    let (first, second) = match &events[..] {
        [
            Event::Appended { segment: a, deliveries, .. },
            Event::SegmentCut { segment: b },
            Event::Appended { segment: c, .. },
        ] => {
            assert_eq!(deliveries.iter().map(|delivery| delivery.sequence.0).collect::<Vec<_>>(), [3, 4]);
            assert_eq!((a, b), (&open, &open));
            (*a, *c)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(second, first + 1);
}

#[test]
fn a_batch_writes_a_row_per_group_and_not_per_message() {
    let (mut log, alice, ..) = room();
    let before = log.machine.rows().len();
    let bodies = vec!["x"; 256];
    log.publish(alice.group("a.b", "p", 1, &bodies));
    let grown = log.machine.rows().len() - before;
    assert_eq!(grown, 8, "the producer, its count and its deadline, and five pages of answers");
    let (from, to) = range_of_answers(common::room_id("a.b"), common::producer_id("p"));
    let pages = log.machine.rows().scan(&from, &to, 100);
    let bytes: usize = pages.iter().map(|(_, page)| page.len()).sum();
    assert!(bytes < 1_200, "256 messages are one run a page and 4 bytes of digest each: {bytes} bytes");
}

#[test]
fn a_delivery_costs_little_more_than_its_body() {
    let (mut log, alice, ..) = room();
    let body = "x".repeat(1_024);
    let bodies = vec![body.as_str(); 256];
    let group = alice.group("a.b", "p", 1, &bodies);
    let applied = log.apply(publish(vec![group]));
    let Event::Appended { deliveries, .. } = &applied.events[0] else { panic!("{:?}", applied.events) };
    let bytes: usize = deliveries.iter().map(|delivery| delivery.bytes.len()).sum();
    assert!(bytes < 256 * 1_150, "headers and ids cost at most 126 bytes a message: {bytes}");
}

#[test]
fn a_message_of_a_bad_size_is_named_with_found_and_limit_and_its_mates_are_stored() {
    let (mut log, alice, ..) = room();
    let header = |name: &str, value: usize| Header { name: name.into(), value: "v".repeat(value) };
    let with = |headers: Vec<Header>| OutgoingMessage { headers, body: b"b".to_vec().into() };
    let bad = [
        (OutgoingMessage { body: vec![0; BODY_BYTES_MAX + 1].into(), headers: vec![] }, ["1048577", "1048576"]),
        (with(vec![header("n", 1); 65]), ["found 65 headers", "64"]),
        (with(vec![header("n", 1), header(&"n".repeat(129), 1)]), ["header 2: found 129 bytes of name", "128"]),
        (with(vec![header("n", 4097)]), ["header 1: found 4097 bytes of value", "4096"]),
        (with(vec![header("n", 4096); 4]), ["found 16388 bytes of headers", "16384"]),
        (with(vec![header("", 1)]), ["header 1: its name is empty", "expected 1"]),
        (with(vec![header("a\nb", 1)]), ["header 1: its name has control characters", "expected none"]),
    ];
    for (at, (message, mentions)) in bad.into_iter().enumerate() {
        let producer = format!("p{at}");
        let mut group = alice.group("a.b", &producer, 1, &["before", "bad", "after"]);
        group.messages[1] = message;
        let first = log.publish(group.clone());
        let found = short(&first);
        assert!(found[0].starts_with("1 stored") && found[2].starts_with("1 stored"), "{found:?}");
        let Some(unibus_proto::v1::publish_outcome::Outcome::Reject(reject)) = &first[1].outcome else { panic!() };
        assert_eq!(reject.code, "INVALID");
        mentions.iter().for_each(|text| assert!(reject.message.contains(text), "{} lacks {text}", reject.message));
        assert_eq!(log.publish(group)[1], first[1], "a retry is told the same");
        assert!(short(&log.publish(alice.group("a.b", &producer, 4, &["next"])))[0].starts_with("1 stored"));
    }
}
