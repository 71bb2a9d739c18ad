use unibus_proto::position::Sequence;

use std::time::Duration;

use unibus_client::Ack;

use super::*;
use crate::exit::{Exit, Happened};

fn ack(sequence: u64, duplicate: bool) -> Ack {
    Ack { sequence: Sequence(sequence), duplicate, time_ms: 1, voters: 3, sent_to: None }
}

fn tally(acks: impl IntoIterator<Item = Ack>) -> Tally {
    let mut tally = Tally { named: true, ..Tally::default() };
    acks.into_iter().for_each(|ack| tally.add(&ack, 10));
    tally
}

fn report(tally: Tally, ended: Ended) -> Report {
    Report { tally, failure: None, ended, producer: "00".into(), took: Duration::from_secs(1) }
}

fn args() -> PubArgs {
    PubArgs {
        subject: "ops.dpkg".parse().unwrap(),
        body: None,
        lines: true,
        header: Vec::new(),
        rate: None,
        producer: None,
    }
}

const OUT: Output = Output { json: false, out_tty: false, err_tty: false };

#[test]
fn result_line_names_first_and_last_sequence() {
    assert_eq!(
        tally((1..=4711).map(|n| ack(n, false))).words(),
        "stored: sequence 1..4711, fsynced on a majority of 3"
    );
    assert_eq!(tally([ack(7, false)]).words(), "stored: sequence 7, fsynced on a majority of 3");
    assert_eq!(tally([]).words(), "stored: nothing");
}

#[test]
fn second_run_says_what_was_known() {
    let again = tally([ack(1, true), ack(2, true), ack(9, false)]);
    assert_eq!(again.words(), "stored: sequence 1..9 (1 stored now, 2 known already), fsynced on a majority of 3");
    let old = tally([ack(0, true)]);
    assert!(old.words().contains("not kept any more") && old.words().contains("1 known already"), "{}", old.words());
}

#[test]
fn lost_answer_of_this_run_is_no_earlier_run() {
    let mut tally = Tally::default();
    tally.add(&ack(1, true), 10);
    assert_eq!(tally.words(), "stored: sequence 1, fsynced on a majority of 3");
}

fn sent(nodes: u32) -> Ack {
    Ack { sequence: Sequence(0), duplicate: false, time_ms: 1, voters: 0, sent_to: Some(nodes) }
}

#[test]
fn what_was_sent_is_not_said_to_be_stored() {
    assert_eq!(tally([sent(1), sent(2), sent(1)]).words(), "sent to 2 nodes, not stored");
    assert_eq!(tally([sent(1)]).words(), "sent to 1 node, not stored");
    assert_eq!(tally([sent(0)]).words(), "nobody is subscribed: sent to no node, not stored");
    let line = bad_line(LineError::TooLong { line: 2, bytes: 2_000_000 });
    let failure = report(tally([sent(1)]), Ended::Bad(line)).end(&args(), OUT).unwrap_err();
    assert!(failure.message.ends_with("; sent before it: 1 message"), "{}", failure.message);
}

#[test]
fn failure_after_some_were_stored_is_partly_done() {
    let line = bad_line(LineError::TooLong { line: 3, bytes: 2_000_000 });
    assert!(line.message.contains("line 3 has 2000000 bytes"), "{}", line.message);
    assert!(line.message.contains("at most 1048576"), "{}", line.message);
    let failure =
        report(tally([ack(1, false), ack(2, false)]), Ended::Bad(line.clone())).end(&args(), OUT).unwrap_err();
    assert_eq!((failure.exit, failure.happened), (Exit::Partly, Happened::Partly));
    assert!(failure.message.ends_with("; stored before it: 2 messages"), "{}", failure.message);
    let failure = report(tally([]), Ended::Bad(line)).end(&args(), OUT).unwrap_err();
    assert_eq!((failure.exit, failure.happened), (Exit::Failed, Happened::No));
}

#[test]
fn refusal_keeps_its_own_exit_code_when_nothing_was_stored() {
    let mut refused = report(tally([]), Ended::Refused);
    refused.failure = Some(Failure::of_code(ErrorCode::NoLeader, "no quorum"));
    assert_eq!(refused.end(&args(), OUT).unwrap_err().exit, Exit::Unavailable);
    let mut unknown = report(tally([]), Ended::Refused);
    unknown.failure = Some(Failure::of_code(ErrorCode::OutcomeUnknown, "answer lost"));
    assert_eq!(unknown.end(&args(), OUT).unwrap_err().exit, Exit::Unknown);
}

#[test]
fn interrupt_ends_with_130_after_the_summary() {
    let failure = report(tally([ack(1, false)]), Ended::Interrupted).end(&args(), OUT).unwrap_err();
    assert_eq!(failure.exit, Exit::Interrupted);
    assert!(failure.silent);
    assert!(report(tally([ack(1, false)]), Ended::Input).end(&args(), OUT).is_ok());
}
