//! What `pub` has to say at its end: what is stored, where, how fast, and how long it was kept waiting.

use std::time::Duration;

use serde_json::json;
use unibus_client::Ack;

use super::Ended;
use crate::args::PubArgs;
use crate::exit::{Failure, Result};
use crate::output::{Output, bytes, count, thousands};
use crate::time::human;

/// What was stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// The producer has a name: what is known already may be the work of an earlier run. Without a name it
    /// is this run's own, whose first answer was lost.
    pub named: bool,
    pub first: Option<u64>,
    pub last: u64,
    pub stored: u64,
    pub known: u64,
    pub bytes: u64,
    pub voters: u32,
    /// Of an ephemeral room: how many messages were sent, and to how many nodes at most.
    pub sent: Option<(u64, u32)>,
    /// Longest time without an acknowledgement while a message waited for one.
    pub longest_gap: Duration,
}

impl Tally {
    /// One more answer.
    pub fn add(&mut self, ack: &Ack, size: u64) {
        if let Some(nodes) = ack.sent_to {
            let (count, most) = self.sent.unwrap_or_default();
            self.sent = Some((count + 1, most.max(nodes)));
            self.bytes += size;
            return;
        }
        // The creation of a room is sequence 0, so 0 says that the place of an old duplicate is not kept.
        if ack.sequence.0 > 0 {
            self.first = Some(self.first.map_or(ack.sequence.0, |first| first.min(ack.sequence.0)));
            self.last = self.last.max(ack.sequence.0);
        }
        if ack.duplicate && self.named {
            self.known += 1
        } else {
            self.stored += 1
        }
        self.bytes += size;
        self.voters = ack.voters.max(self.voters);
    }

    /// An answer came after so long without one.
    pub fn note_gap(&mut self, gap: Duration) {
        self.longest_gap = self.longest_gap.max(gap);
    }

    /// How many are stored, by this run or an earlier one, or sent.
    pub fn total(&self) -> u64 {
        self.stored + self.known + self.sent.map_or(0, |(count, _)| count)
    }

    /// The result line.
    pub fn words(&self) -> String {
        if self.total() == 0 {
            return "stored: nothing".into();
        }
        if let Some((_, nodes)) = self.sent {
            return match nodes {
                0 => "nobody is subscribed: sent to no node, not stored".into(),
                nodes => format!("sent to {}, not stored", count(nodes.into(), "node")),
            };
        }
        let place = match self.first {
            Some(first) if first == self.last => format!("sequence {first}"),
            Some(first) => format!("sequence {first}..{}", self.last),
            None => "at places that are not kept any more".into(),
        };
        let split = match self.known {
            0 => String::new(),
            known => format!(" ({} stored now, {} known already)", thousands(self.stored), thousands(known)),
        };
        format!("stored: {place}{split}, fsynced on a majority of {}", self.voters)
    }
}

/// How it went.
pub(super) struct Report {
    pub tally: Tally,
    pub failure: Option<Failure>,
    pub ended: Ended,
    pub producer: String,
    pub took: Duration,
}

impl Report {
    pub fn end(self, args: &PubArgs, out: Output) -> Result<()> {
        let failure = match &self.ended {
            // A publisher that ended refuses the next message: the collector knows why it ended.
            Ended::Bad(failure) => self.failure.clone().or(Some(failure.clone())),
            Ended::Input | Ended::Interrupted | Ended::Refused => self.failure.clone(),
        };
        if failure.is_none() || self.tally.total() > 0 {
            self.say(args, out)?;
        }
        match failure {
            Some(failure) if self.tally.total() > 0 => Err(self.partly(failure)),
            Some(failure) => Err(failure),
            None if matches!(self.ended, Ended::Interrupted) => Err(Failure::interrupted()),
            None => Ok(()),
        }
    }

    fn say(&self, args: &PubArgs, out: Output) -> Result<()> {
        let tally = &self.tally;
        if out.json {
            return out.object(
                "publish",
                json!({
                    "subject": args.subject.as_str(),
                    "first_sequence": tally.first,
                    "last_sequence": tally.first.map(|_| tally.last),
                    "stored": tally.stored,
                    "known": tally.known,
                    "bytes": tally.bytes,
                    "voters": tally.voters,
                    "sent": tally.sent.map(|(count, _)| count),
                    "sent_to_nodes": tally.sent.map(|(_, nodes)| nodes),
                    "producer": self.producer,
                    "duration_ms": self.took.as_millis() as u64,
                    "longest_gap_ms": tally.longest_gap.as_millis() as u64,
                }),
            );
        }
        out.talk(tally.words());
        if args.lines && tally.total() > 0 {
            let seconds = self.took.as_secs_f64().max(0.001);
            out.talk(format!(
                "{}, {} in {} ({}/s), longest time without an acknowledgement {}",
                count(tally.total(), "message"),
                bytes(tally.bytes),
                human(self.took),
                thousands((tally.total() as f64 / seconds) as u64),
                human(tally.longest_gap),
            ));
        }
        Ok(())
    }

    fn partly(&self, failure: Failure) -> Failure {
        let (before, what) = (self.tally.total(), if self.tally.sent.is_some() { "sent" } else { "stored" });
        let mut failure = failure.partly();
        failure.message = format!("{}; {what} before it: {}", failure.message, count(before, "message"));
        failure
    }
}
