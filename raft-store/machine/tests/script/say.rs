//! Replies and events in words; ids by the names that the script gave them.

use std::collections::BTreeMap;

use unibus_machine::Event;
use unibus_proto::log;
use unibus_proto::log::reply::Reply as Answer;
use unibus_proto::v1::publish_outcome::Outcome;
use unibus_proto::v1::{Delivery, DeviceBundle, PublishOutcome, Reject, RosterEvent, Signed, delivery};

use crate::common::{Person, producer_id, room_id};

/// Names of ids.
#[derive(Default)]
pub struct Say(BTreeMap<String, String>);

impl Say {
    /// Learns a room's and a device's name.
    pub fn learn(&mut self, subject: &str, person: &Person) {
        self.0.insert(room_id(subject).to_string(), format!("<{subject}>"));
        self.0.insert(person.device().to_string(), format!("<{}/{}>", person.handle, person.device_name));
        for name in ["p", "q"] {
            self.0.insert(producer_id(name).to_string(), format!("<{name}>"));
        }
    }

    fn name(&self, text: String) -> String {
        self.0.iter().fold(text, |text, (id, name)| text.replace(id, name))
    }

    /// The device of a bundle.
    pub fn device_of(&self, bundle: &Signed) -> String {
        let bundle: DeviceBundle = bundle.decode_unverified().unwrap();
        self.name(unibus_proto::id::DeviceId::from_bytes(&bundle.device_id).unwrap().to_string())
    }

    /// A reply, a line or more.
    pub fn reply(&self, reply: &log::Reply) -> Vec<String> {
        let line = match reply.reply.as_ref().unwrap() {
            Answer::Rejected(reject) => self.reject(reject),
            Answer::Done(_) => "done".into(),
            Answer::User(reply) => {
                let user = reply.user.as_ref().unwrap();
                let created = if reply.created { "new" } else { "as it stands" };
                format!("user {}: {:?} {:?}, {created}", user.handle, user.role(), user.status())
            }
            Answer::Room(reply) => {
                let room = unibus_proto::id::RoomId::from_bytes(&reply.room_id).unwrap();
                let created = if reply.created { "new" } else { "there already" };
                let shard = if reply.shard > 0 { format!(", shard {}", reply.shard) } else { String::new() };
                self.name(format!("room {room}: {created}{shard}"))
            }
            Answer::Roster(reply) => format!("sequence {}", reply.sequence),
            Answer::DeviceList(reply) => format!("device list version {}", reply.version),
            Answer::CommandBatch(reply) => return reply.replies.iter().flat_map(|reply| self.reply(reply)).collect(),
            Answer::Publish(reply) => {
                let outcomes = reply.groups.iter().enumerate();
                return outcomes
                    .flat_map(|(at, group)| group.outcomes.iter().map(move |outcome| self.outcome(at, outcome)))
                    .collect();
            }
        };
        vec![line]
    }

    fn outcome(&self, group: usize, outcome: &PublishOutcome) -> String {
        let (first, last) = (outcome.first_number, outcome.first_number + u64::from(outcome.count.max(1)) - 1);
        let numbers = if first == last { format!("number {first}") } else { format!("numbers {first} to {last}") };
        let what = match outcome.outcome.as_ref().unwrap() {
            Outcome::Stored(stored) => format!("stored at {}", stored.first_sequence),
            Outcome::Duplicate(stored) => format!("duplicate of {}", stored.first_sequence),
            Outcome::Accepted(_) => unreachable!("the log accepts nothing without storing it"),
            Outcome::Reject(reject) => self.reject(reject),
        };
        format!("group {group}, {numbers}: {what}")
    }

    fn reject(&self, reject: &Reject) -> String {
        let expected = if reject.expected > 0 { format!(" (expected {})", reject.expected) } else { String::new() };
        self.name(format!("{}{expected}: {}", reject.code, reject.message))
    }

    /// An event, a line.
    pub fn event(&self, event: &Event) -> String {
        self.name(match event {
            Event::Appended { segment, room, deliveries } => {
                let entries: Vec<_> = deliveries
                    .iter()
                    .map(|delivery| format!("{} {}", delivery.sequence, entry(&delivery.bytes)))
                    .collect();
                format!("-> {room} in segment {segment}: {}", entries.join(", "))
            }
            Event::SegmentCut { segment } => format!("-> segment {segment} is complete"),
            Event::SegmentSealed { segment, length, hash } => {
                format!("-> segment {segment} is sealed with {length} bytes, hash {:02x}..", hash[0])
            }
            Event::SegmentDropped { segment } => format!("-> segment {segment} is dropped"),
            Event::MemberChanged { room, user, role } => match role {
                Some(role) => format!("-> {user} is {role:?} of {room}"),
                None => format!("-> {user} is no member of {room} any more"),
            },
            Event::RoomCreated { room } => format!("-> {room} is created"),
            Event::DirectoryChanged { room, subject, shard, active } => {
                format!("-> directory: {room} is {subject} in {shard}, active {active}")
            }
            Event::UserChanged { user } => format!("-> user {user} changed"),
            Event::DevicesChanged { user } => format!("-> devices of {user} changed"),
        })
    }
}

fn entry(bytes: &[u8]) -> String {
    let delivery: Delivery = prost::Message::decode(bytes).unwrap();
    match delivery.entry.unwrap() {
        delivery::Entry::Message(message) => {
            format!("{}#{} {:?}", message.user, message.number, String::from_utf8_lossy(&message.body))
        }
        delivery::Entry::Roster(entry) => {
            let event: RosterEvent = entry.event.unwrap().decode_unverified().unwrap();
            format!("{:?} by {}", event.op(), event.actor_user)
        }
    }
}
