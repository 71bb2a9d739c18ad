//! `sub`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::FutureExt;
use serde_json::{Value, json};
use unibus_client::{Item, Received, RosterChange, Start, SubscribeOptions, Subscription, TokioPlatform};
use unibus_proto::code::ErrorCode;
use unibus_proto::position::Sequence;
use unibus_proto::v1::{RosterEvent, RosterOp};

use super::room::role_name;
use crate::args::{Global, SubArgs};
use crate::exit::{Failure, Result};
use crate::output::{Output, count, preview, with_schema};
use crate::parse::StartAt;
use crate::session::{During, Session, interrupted};
use crate::time::{now_ms, rfc3339};

/// Output is written in pieces of so many bytes, or when nothing more is waiting to be read.
const WRITE_BYTES: usize = 128 << 10;
/// A body on a terminal is cut to so many characters; in a pipe it is whole.
const PREVIEW_WIDTH: usize = 200;

/// Runs `sub`.
pub async fn run(args: &SubArgs, global: &Global, out: Output) -> Result<()> {
    if args.raw && out.json {
        return Err(Failure::usage("sub: found both --raw and --json, expected one of them"));
    }
    let client = Session::open(global, out)?.client;
    // A live subscription waits for its cluster as long as it takes; a bounded one is part of a script.
    let patience = args.until_end.then_some(global.timeout);
    let options = SubscribeOptions { until_end: args.until_end, patience, ..SubscribeOptions::default() };
    let step = format!("subscribe to {}", args.filter);
    let mut sink = Sink::new(args, out)?;
    let mut stop = std::pin::pin!(interrupted());
    let mut subscription = tokio::select! {
        opened = client.subscribe(&args.filter, start(args), options) => {
            opened.during(&step).map_err(|failure| name_range(failure, args))?
        }
        () = &mut stop => return Err(Failure::interrupted()),
    };
    let ended = tokio::select! {
        ended = pump(&mut subscription, &mut sink, args.count) => ended,
        () = &mut stop => Err(Failure::interrupted()),
    };
    sink.writer.flush()?;
    if !ended.as_ref().is_err_and(|failure| failure.silent && failure.code != "INTERRUPTED") {
        out.hint(sink.summary());
    }
    ended.map_err(|failure| if failure.silent { failure } else { name_range(failure.during(step), args) })
}

fn name_range(failure: Failure, args: &SubArgs) -> Failure {
    if failure.code != ErrorCode::OutOfRange.as_str() {
        return failure;
    }
    failure.remedy(format!("unibusctl sub '{}' --from earliest", args.filter))
}

fn start(args: &SubArgs) -> Start {
    if let Some(since) = args.since {
        return Start::TimeMs(now_ms().saturating_sub(since.as_millis() as u64));
    }
    match args.from {
        None | Some(StartAt::Latest) => Start::Latest,
        Some(StartAt::Earliest) => Start::Earliest,
        Some(StartAt::Sequence(sequence)) => Start::Sequence(Sequence(sequence)),
    }
}

async fn pump(subscription: &mut Subscription<TokioPlatform>, sink: &mut Sink, count: Option<u64>) -> Result<()> {
    loop {
        // Whoever reads along sees each message at once, and a flood is written in large pieces.
        let ready = subscription.next().now_or_never();
        let item = match ready {
            Some(item) => item,
            None => {
                sink.writer.flush()?;
                subscription.next().await
            }
        };
        match item {
            None => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(item)) => sink.write(&item)?,
        }
        if count.is_some_and(|count| sink.messages >= count) {
            return Ok(());
        }
    }
}

/// How an item is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Raw,
    Json,
    Text { width: Option<usize> },
}

/// Where items go.
struct Sink {
    writer: BufWriter<File>,
    style: Style,
    messages: u64,
    bytes: u64,
    last: Option<u64>,
}

impl Sink {
    fn new(args: &SubArgs, out: Output) -> Result<Self> {
        // The library's own standard output flushes at each line.
        let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let style = match () {
            () if args.raw => Style::Raw,
            () if out.json => Style::Json,
            () => Style::Text { width: out.out_tty.then_some(PREVIEW_WIDTH) },
        };
        let writer = BufWriter::with_capacity(WRITE_BYTES, stdout);
        Ok(Self { writer, style, messages: 0, bytes: 0, last: None })
    }

    fn write(&mut self, item: &Item) -> io::Result<()> {
        if let Item::Message(message) = item {
            self.messages += 1;
            self.bytes += message.body.len() as u64;
            self.last = (!message.ephemeral).then_some(message.sequence.0).or(self.last);
        }
        write_item(&mut self.writer, item, self.style)
    }

    fn summary(&self) -> String {
        let last = self.last.map(|last| format!(", the last is sequence {last}")).unwrap_or_default();
        format!("received: {}, {}{last}", count(self.messages, "message"), count(self.bytes, "byte"))
    }
}

fn write_item(writer: &mut impl Write, item: &Item, style: Style) -> io::Result<()> {
    match (style, item) {
        (_, Item::CaughtUp) | (Style::Raw, Item::Roster(_)) => Ok(()),
        (Style::Raw, Item::Message(message)) => writer.write_all(&message.body),
        (Style::Json, Item::Message(message)) => writeln!(writer, "{}", with_schema("message", describe(message))),
        (Style::Json, Item::Roster(change)) => {
            writeln!(writer, "{}", with_schema("roster_event", describe_roster(change)))
        }
        (Style::Text { width }, Item::Message(message)) => {
            let (time, body) = (rfc3339(message.time_ms), preview(&message.body, width));
            let place = place(message).map_or_else(|| "-".into(), |sequence| sequence.to_string());
            writeln!(writer, "{time}\t{}\t{place}\t{}\t{body}", message.subject, message.user)
        }
        (Style::Text { .. }, Item::Roster(change)) => {
            let (time, event) = (rfc3339(change.time_ms), change.event.as_ref());
            let actor = event.map_or("-", |event| event.actor_user.as_str());
            let words = event.map_or_else(|| "roster event that cannot be decoded".into(), roster_words);
            writeln!(writer, "{time}\t{}\t{}\t{actor}\t* {words}", change.subject, change.sequence)
        }
    }
}

fn roster_words(event: &RosterEvent) -> String {
    let (user, role) = (&event.subject_user, role_name(event.role()));
    match event.op() {
        RosterOp::Unspecified => "unknown roster event".into(),
        RosterOp::Create => format!("made the room {}", event.subject),
        RosterOp::Add => format!("added {user} as {role}"),
        RosterOp::Remove => format!("removed {user}"),
        RosterOp::Leave => format!("{user} left"),
        RosterOp::Role => format!("made {user} {role}"),
        RosterOp::Policy => "changed the policy".into(),
    }
}

/// Its sequence; none in an ephemeral room.
fn place(message: &Received) -> Option<u64> {
    (!message.ephemeral).then_some(message.sequence.0)
}

/// The JSON shape of a message.
fn describe(message: &Received) -> Value {
    let headers: Vec<_> =
        message.headers.iter().map(|header| json!({ "name": header.name, "value": header.value })).collect();
    json!({
        "room_id": message.room_id.to_string(),
        "subject": &*message.subject,
        "sequence": place(message),
        "ephemeral": message.ephemeral,
        "time": rfc3339(message.time_ms),
        "user": &*message.user,
        "device": message.device.to_string(),
        "producer": message.producer.to_string(),
        "number": message.number,
        "headers": headers,
        "body": BASE64.encode(&message.body),
    })
}

fn describe_roster(change: &RosterChange) -> Value {
    let event = change.event.as_ref();
    json!({
        "room_id": change.room_id.to_string(),
        "subject": &*change.subject,
        "sequence": change.sequence.0,
        "time": rfc3339(change.time_ms),
        "op": event.map(|event| event.op().as_str_name().trim_start_matches("ROSTER_OP_").to_lowercase()),
        "user": event.map(|event| event.subject_user.as_str()),
        "role": event.map(|event| role_name(event.role())),
        "actor": event.map(|event| event.actor_user.as_str()),
    })
}

#[cfg(test)]
mod tests {
    use unibus_proto::id::RoomId;
    use unibus_proto::v1::{Header, RoomRole, RosterEntry};

    use super::*;

    fn message(body: &[u8]) -> Item {
        Item::Message(Received {
            room_id: RoomId([7; 16]),
            subject: "ops.dpkg".into(),
            sequence: Sequence(4711),
            ephemeral: false,
            time_ms: 1_709_210_096_789,
            user: "alice".into(),
            device: Default::default(),
            producer: unibus_proto::id::ProducerId([1; 8]),
            number: 9,
            headers: vec![Header { name: "a".into(), value: "b".into() }],
            body: body.to_vec().into(),
        })
    }

    fn roster() -> Item {
        let event = RosterEvent {
            op: RosterOp::Add.into(),
            subject_user: "bob".into(),
            role: RoomRole::Reader.into(),
            actor_user: "alice".into(),
            ..RosterEvent::default()
        };
        Item::Roster(RosterChange {
            room_id: RoomId([7; 16]),
            subject: "ops.dpkg".into(),
            sequence: Sequence(1),
            time_ms: 0,
            entry: RosterEntry::default(),
            event: Some(event),
        })
    }

    fn written(item: &Item, style: Style) -> String {
        let mut bytes = Vec::new();
        write_item(&mut bytes, item, style).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn raw_is_the_bodies_and_nothing_else() {
        let mut bytes = Vec::new();
        for item in [message(b"\xff\n"), roster(), Item::CaughtUp, message(b"no end")] {
            write_item(&mut bytes, &item, Style::Raw).unwrap();
        }
        assert_eq!(bytes, b"\xff\nno end");
    }

    #[test]
    fn text_is_one_line_per_entry() {
        let text = Style::Text { width: None };
        assert_eq!(
            written(&message(b"two\nlines\n"), text),
            "2024-02-29T12:34:56.789Z\tops.dpkg\t4711\talice\ttwo\\nlines\n"
        );
        assert_eq!(written(&roster(), text), "1970-01-01T00:00:00.000Z\tops.dpkg\t1\talice\t* added bob as reader\n");
        assert_eq!(written(&Item::CaughtUp, text), "");
    }

    #[test]
    fn what_is_not_stored_has_no_place() {
        let Item::Message(message) = message(b"x") else { panic!("a message") };
        let item = Item::Message(Received { sequence: Sequence(0), ephemeral: true, ..message });
        let text = written(&item, Style::Text { width: None });
        assert_eq!(text, "2024-02-29T12:34:56.789Z\tops.dpkg\t-\talice\tx\n");
        let value: Value = serde_json::from_str(&written(&item, Style::Json)).unwrap();
        assert_eq!((value["sequence"].is_null(), value["ephemeral"].as_bool()), (true, Some(true)));
    }

    #[test]
    fn json_shapes() {
        let value: Value = serde_json::from_str(&written(&message(b"\xff\x00"), Style::Json)).unwrap();
        assert_eq!(value["schema"], "unibus.cli.v1.message");
        assert_eq!((value["sequence"].as_u64(), value["number"].as_u64()), (Some(4711), Some(9)));
        assert_eq!(value["time"], "2024-02-29T12:34:56.789Z");
        assert_eq!(value["body"], "/wA=");
        assert_eq!(value["producer"], "0101010101010101");
        assert_eq!(value["headers"][0]["name"], "a");
        let value: Value = serde_json::from_str(&written(&roster(), Style::Json)).unwrap();
        assert_eq!(value["schema"], "unibus.cli.v1.roster_event");
        assert_eq!((value["op"].as_str(), value["user"].as_str()), (Some("add"), Some("bob")));
    }
}
