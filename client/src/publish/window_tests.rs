//! Answers in every order that two requests on their way can have.

use std::sync::Arc;

use tokio::sync::Semaphore;
use unibus_proto::v1::{PublishOutcome, Stored};

use super::*;

fn window(messages: usize) -> Window {
    let permits = Arc::new(Semaphore::new(2 * messages));
    let permit = || Arc::clone(&permits).try_acquire_owned().expect("enough");
    let mut window = Window::new();
    for _ in 0..messages {
        let done = oneshot::channel().0;
        window.push(Push { message: OutgoingMessage::default(), size: 1, done, permits: (permit(), permit()) });
    }
    window
}

/// Sends what there is as requests of `each` messages.
fn send_all(window: &mut Window, tags: std::ops::RangeInclusive<u64>) {
    for tag in tags {
        let batch = window.batch(false).expect("something to send");
        window.note_sent(tag, batch.first, batch.messages.len());
    }
}

fn stored(first: u64, count: u32) -> PublishResponse {
    let outcome = Some(Became::Stored(Stored { first_sequence: first }));
    let outcomes = vec![PublishOutcome { first_number: first, count, outcome }];
    PublishResponse { outcomes, ..PublishResponse::default() }
}

fn refused(first: u64, count: u32, code: ErrorCode, expected: u64) -> PublishResponse {
    let reject = Reject { expected, ..Reject::new(code, "") };
    let outcomes = vec![PublishOutcome { first_number: first, count, outcome: Some(Became::Reject(reject)) }];
    PublishResponse { outcomes, ..PublishResponse::default() }
}

const FULL: u32 = BATCH_MESSAGES_MAX as u32;

/// P3: the second request entered the log before the first, and the first was stored after that.
#[test]
fn an_overtaken_request_is_no_loss() {
    let mut window = window(2 * BATCH_MESSAGES_MAX + 300);
    send_all(&mut window, 1..=1);
    assert_eq!(window.answer(1, &stored(1, FULL)), Verdict::Go);
    send_all(&mut window, 2..=3);
    let second = u64::from(FULL) + 1;
    assert_eq!(window.answer(2, &stored(second, FULL)), Verdict::Go);
    let overtook = refused(second + u64::from(FULL), FULL, ErrorCode::OutOfOrder, second);
    assert!(matches!(window.answer(3, &overtook), Verdict::Resend(_)));
    assert_eq!(window.batch(false).map(|batch| batch.first), Some(second + u64::from(FULL)));
}

/// P3: the same for the request that opens the producer.
#[test]
fn an_overtaken_opening_is_sent_again() {
    let mut window = window(2 * BATCH_MESSAGES_MAX);
    send_all(&mut window, 1..=2);
    let overtook = refused(u64::from(FULL) + 1, FULL, ErrorCode::UnknownProducer, 0);
    assert!(matches!(window.answer(2, &overtook), Verdict::Resend(_)));
    assert_eq!(window.batch(false).map(|batch| batch.first), Some(1));
}

/// P1: what was answered before a request was sent must not be missing when it is decided.
#[test]
fn a_loss_of_what_was_answered_is_said() {
    let mut window = window(2 * BATCH_MESSAGES_MAX);
    send_all(&mut window, 1..=1);
    assert_eq!(window.answer(1, &stored(1, FULL)), Verdict::Go);
    send_all(&mut window, 2..=2);
    let lost = refused(u64::from(FULL) + 1, FULL, ErrorCode::OutOfOrder, 7);
    assert!(matches!(window.answer(2, &lost), Verdict::Fatal(_)));
}
