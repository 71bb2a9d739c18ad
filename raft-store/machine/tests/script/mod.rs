//! The runner: what the commands of a script mean. `say.rs` puts what came of them into words.

mod say;

use std::fmt::Write;

use unibus_machine::key::{Key, range_of_answers, range_of_spans};
use unibus_machine::{Applied, Rows};
use unibus_proto::id::{GroupId, Handle};
use unibus_proto::log::proposal::Command;
use unibus_proto::log::{
    DeviceListPut, NodeAdd, NodeDrain, NodeGone, NodeRemove, PlannedNode, PublishGroup, RoomActivate, RoomReserve,
    RosterAppend, SegmentSealed, Tick, UserAdd, UserAttach, UserChange,
};
use unibus_proto::row::{AnswerRun, AnswersRow, DirectoryRow, NodeRow, ProducerRow};
use unibus_proto::v1::{
    DeviceEnd, DeviceList, EndedDevice, RoomPolicy, RoomRetention, RoomRole, RosterOp, Signed, UserRole, UserStatus,
};

use crate::common::{CLUSTER, Log, Person, cluster_init, message, producer_id, publish, room_id};
use say::Say;

/// Runs a script; the script with what was found in place of what it told.
pub fn run(told: &str) -> String {
    let mut story = Story { log: Log::shard(), say: Say::default(), groups: Vec::new() };
    let mut found = String::new();
    for line in told.lines() {
        let Some(command) = line.strip_prefix("> ") else {
            if line.is_empty() || line.starts_with('#') {
                writeln!(found, "{line}").unwrap();
            }
            continue;
        };
        writeln!(found, "{line}").unwrap();
        for line in story.run(command) {
            writeln!(found, "  {line}").unwrap();
        }
    }
    found
}

struct Story {
    log: Log,
    say: Say,
    /// Groups of the batch under way.
    groups: Vec<PublishGroup>,
}

/// The words of a command: positional ones, and `name=value`.
struct Words<'a>(Vec<&'a str>);

impl<'a> Words<'a> {
    fn at(&self, at: usize) -> &'a str {
        let positional: Vec<_> = self.0.iter().filter(|word| !word.contains('=')).collect();
        positional.get(at).unwrap_or_else(|| panic!("{:?}: a word is missing at {at}", self.0))
    }

    fn rest(&self, from: usize) -> Vec<&'a str> {
        self.0.iter().filter(|word| !word.contains('=')).skip(from).copied().collect()
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name).map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value}: no number")))
    }

    /// `by=alice` or `by=alice/laptop`.
    fn by(&self) -> Person {
        person(self.get("by").unwrap_or_else(|| panic!("{:?}: by whom?", self.0)))
    }
}

fn person(text: &str) -> Person {
    match text.split_once('/') {
        Some((handle, device)) => Person::with_device(handle, device),
        None => Person::new(text),
    }
}

fn user_role(word: Option<&str>) -> UserRole {
    match word {
        Some("admin") => UserRole::Admin,
        Some("member") => UserRole::Member,
        _ => UserRole::Unspecified,
    }
}

fn room_role(word: Option<&str>) -> RoomRole {
    match word {
        Some("admin") => RoomRole::Admin,
        Some("member") => RoomRole::Member,
        Some("reader") => RoomRole::Reader,
        _ => RoomRole::Unspecified,
    }
}

fn policy(words: &Words) -> RoomPolicy {
    let has = |word| words.0.contains(&word);
    let keep = |name| words.number(name).unwrap_or(0);
    let retention = RoomRetention {
        max_age_ms: keep("keep-ms"),
        max_bytes: keep("keep-bytes"),
        max_messages: keep("keep-messages"),
    };
    let retention = Some(retention).filter(|retention| *retention != RoomRetention::default());
    RoomPolicy { encrypt: has("encrypt"), persist: !has("ephemeral"), sign: has("sign"), retention }
}

/// `node-add 4 name=n4 disk=x`.
fn planned_node(words: &Words) -> PlannedNode {
    let id: u64 = words.at(0).parse().unwrap();
    let mut node = crate::common::planned_node(id);
    if let Some(name) = words.get("name") {
        node.name = name.into();
    }
    if let Some(disk) = words.get("disk") {
        node.directory_id = crate::common::derive::<16>(disk).to_vec().into();
    }
    node
}

fn node_line(row: &NodeRow) -> String {
    let node = row.node.as_ref().unwrap();
    let other = |what: &str, id: u64| if id == 0 { String::new() } else { format!(", {what} {id}") };
    let (replaces, replaced_by) = (other("replaces", row.replaces), other("replaced by", row.replaced_by));
    format!("{} {}: {:?}{replaces}{replaced_by}", node.node_id, node.name, row.state())
}

impl Story {
    fn run(&mut self, line: &str) -> Vec<String> {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap();
        let words = Words(words.collect());
        match name {
            "group" => {
                let group =
                    if words.at(0) == "meta" { GroupId::META } else { GroupId(words.at(0)[1..].parse().unwrap()) };
                self.log = Log::new(group);
                return vec![];
            }
            "segment-bytes" => {
                let max = words.at(0).parse().unwrap();
                let machine = self.log.machine.clone();
                self.log.machine = machine.with_segment_bytes(max);
                return vec![];
            }
            "at" => {
                self.log.at_ms = words.at(0).parse().unwrap();
                return vec![];
            }
            "deadline" => return vec![format!("{:?}", self.log.machine.next_deadline())],
            "view" => return self.view(&words),
            "group-of" => {
                self.groups.push(self.group(&words));
                return vec![];
            }
            _ => {}
        }
        let command = self.command(name, &words);
        let applied = self.log.apply(command);
        self.tell(&applied)
    }

    fn tell(&self, applied: &Applied) -> Vec<String> {
        let mut lines = self.say.reply(&applied.reply);
        lines.extend(applied.events.iter().map(|event| self.say.event(event)));
        lines
    }

    fn command(&mut self, name: &str, words: &Words) -> Command {
        let request_id = vec![words.number("request").unwrap_or(self.log.index) as u8; 16].into();
        match name {
            "init" => Command::ClusterInit(cluster_init(words.at(0).parse().unwrap())),
            "user-add" => {
                let key = person(words.get("key").unwrap_or(words.at(0))).public_key();
                let role = user_role(words.get("role")).into();
                let actor = words.get("by").unwrap_or("local").into();
                Command::UserAdd(UserAdd { request_id, handle: words.at(0).into(), user_key: key, role, actor })
            }
            "user-change" => {
                let status = match words.get("status") {
                    Some("active") => UserStatus::Active,
                    Some("revoked") => UserStatus::Revoked,
                    _ => UserStatus::Unspecified,
                };
                Command::UserChange(UserChange {
                    request_id,
                    handle: words.at(0).into(),
                    role: user_role(words.get("role")).into(),
                    status: status.into(),
                    actor: words.get("by").unwrap_or("local").into(),
                })
            }
            "reserve" => {
                let create = self.create(words);
                let (event, actor) = (create.event, create.actor);
                Command::RoomReserve(RoomReserve { event, actor, shard: words.number("shard").unwrap() as u32 })
            }
            "activate" => Command::RoomActivate(RoomActivate { room_id: room_id(words.at(0)).to_bytes() }),
            "create" => Command::RoomCreate(self.create(words)),
            "roster" => Command::RosterAppend(self.roster(words)),
            "publish" => publish(vec![self.group(words)]),
            "publish-batch" => publish(std::mem::take(&mut self.groups)),
            "attach" => {
                let user_key = person(words.get("key").unwrap_or(words.at(0))).public_key();
                Command::UserAttach(UserAttach { handle: words.at(0).into(), user_key })
            }
            "devices" => Command::DeviceListPut(self.devices(words)),
            "tick" => Command::Tick(Tick {}),
            "seal" => Command::SegmentSealed(SegmentSealed {
                segment: words.at(0).parse().unwrap(),
                length: words.number("length").unwrap(),
                hash: vec![words.number("hash").unwrap() as u8; 32].into(),
            }),
            "node-add" => Command::NodeAdd(NodeAdd {
                request_id,
                node: Some(planned_node(words)),
                replaces: words.number("replaces").unwrap_or(0),
                actor: words.get("by").unwrap_or("local").into(),
            }),
            "node-drain" | "node-undrain" => Command::NodeDrain(NodeDrain {
                request_id,
                node_id: words.at(0).parse().unwrap(),
                draining: name == "node-drain",
                actor: words.get("by").unwrap_or("local").into(),
            }),
            "node-remove" => Command::NodeRemove(NodeRemove {
                request_id,
                node_id: words.at(0).parse().unwrap(),
                actor: words.get("by").unwrap_or("local").into(),
            }),
            "node-gone" => Command::NodeGone(NodeGone { node_id: words.at(0).parse().unwrap() }),
            other => panic!("{other}: no such command"),
        }
    }

    fn create(&mut self, words: &Words) -> unibus_proto::log::RoomCreate {
        let (actor, subject) = (words.by(), words.at(0));
        let mut event = actor.create_event(subject, policy(words));
        if let Some(other) = words.get("id-of") {
            event.room_id = room_id(other).to_bytes();
        }
        self.say.learn(subject, &actor);
        unibus_proto::log::RoomCreate { event: Some(actor.sign(&event)), actor: Some(actor.proof()) }
    }

    fn roster(&mut self, words: &Words) -> RosterAppend {
        let (actor, subject, op) = (words.by(), words.at(0), words.at(1));
        let row = self.log.machine.room(room_id(subject)).unwrap_or_default();
        let height = words.number("height").unwrap_or(row.roster_height + 1);
        let previous = match height.checked_sub(1).filter(|&height| height < row.roster_height) {
            Some(before) => {
                self.log.machine.roster(room_id(subject), before, 1)[0].event.clone().unwrap().payload_hash()
            }
            None => row.roster_hash[..].try_into().unwrap_or_default(),
        };
        let mut event = actor.event(subject, height, previous.to_vec().into(), RosterOp::Unspecified);
        let member = || person(words.at(2));
        match op {
            "add" => {
                event.set_op(RosterOp::Add);
                event.subject_key_fingerprint = member().fingerprint();
            }
            "remove" => event.set_op(RosterOp::Remove),
            "leave" => event.set_op(RosterOp::Leave),
            "role" => event.set_op(RosterOp::Role),
            "policy" => event.set_op(RosterOp::Policy),
            other => panic!("{other}: no such roster operation"),
        }
        if op == "policy" {
            event.policy = Some(policy(words));
        } else {
            event.subject_user = if op == "leave" { actor.handle.to_string() } else { member().handle.to_string() };
        }
        event.set_role(room_role(words.get("role")));
        let signer = words.get("signed-by").map_or(actor.clone(), person);
        self.say.learn(subject, &actor);
        RosterAppend { event: Some(signer.sign(&event)), actor: Some(actor.proof()) }
    }

    fn group(&self, words: &Words) -> PublishGroup {
        let person = words.by();
        let mut group = person.group(words.at(0), words.get("producer").unwrap_or("p"), 1, &[]);
        group.first_number = words.number("number").unwrap_or(1);
        group.opened_ms = words.number("opened").unwrap_or(self.log.at_ms);
        group.messages = words.rest(1).into_iter().map(message).collect();
        group
    }

    fn devices(&mut self, words: &Words) -> DeviceListPut {
        let user = words.at(0);
        let row = self.log.machine.devices(&user.parse::<Handle>().unwrap()).unwrap_or_default();
        let signer = person(words.get("signed-by").unwrap_or(user));
        let devices: Vec<_> = words.rest(1).iter().map(|name| Person::with_device(user, name)).collect();
        devices.iter().for_each(|device| self.say.learn("", device));
        let known = self.log.machine.device_bundles(&user.parse().unwrap());
        let bundles: Vec<Signed> = devices.iter().map(Person::signed_bundle).collect();
        let mut bundle_hashes: Vec<_> = bundles.iter().map(|bundle| bundle.payload_hash().to_vec().into()).collect();
        bundle_hashes.sort();
        let ended = words.get("ended").unwrap_or_default().split(',').filter(|text| !text.is_empty()).map(|text| {
            let (name, reason) = text.split_once(':').unwrap();
            let reason = if reason == "retired" { DeviceEnd::Retired } else { DeviceEnd::Revoked };
            EndedDevice { device_id: Person::with_device(user, name).bundle.device_id, reason: reason.into() }
        });
        let list = DeviceList {
            user: user.into(),
            version: words.number("version").unwrap_or(row.version + 1),
            previous_hash: row.hash,
            bundle_hashes,
            ended: ended.collect(),
        };
        let fresh = bundles.into_iter().filter(|bundle| !known.contains(bundle)).collect();
        let bundles = if words.get("bundles") == Some("none") { vec![] } else { fresh };
        DeviceListPut { device_list: Some(Signed::sign(CLUSTER, &list, &[&signer.user_key])), bundles }
    }

    fn view(&self, words: &Words) -> Vec<String> {
        let machine = &self.log.machine;
        let room = || room_id(words.at(1));
        match words.at(0) {
            "room" => match machine.room(room()) {
                None => vec!["no such room".into()],
                Some(row) => vec![format!(
                    "head {}, height {}, epoch {}, {} members, {} admins",
                    row.next_sequence as i64 - 1,
                    row.roster_height,
                    row.epoch,
                    row.members,
                    row.admins
                )],
            },
            "kept" => {
                let row = machine.room(room()).unwrap_or_default();
                let spans = machine.rows().scan(&range_of_spans(room()).0, &range_of_spans(room()).1, 100).len()
                    + usize::from(row.oldest.is_some())
                    + usize::from(row.newest.is_some());
                let reach = format!("{} to {}", row.floor, row.next_sequence as i64 - 1);
                vec![format!("{reach}, {} bytes in {spans} spans", row.size_bytes)]
            }
            "members" => {
                let members = machine.members(room(), None, 100);
                members
                    .iter()
                    .map(|(user, row)| format!("{user}: {:?} since {}", row.role(), row.since_sequence))
                    .collect()
            }
            "nodes" => machine.node_rows().iter().map(node_line).collect(),
            "users" => {
                let user =
                    |user: unibus_proto::v1::User| format!("{}: {:?} {:?}", user.handle, user.role(), user.status());
                machine.users(None, 100).into_iter().map(user).collect()
            }
            "directory" => {
                let page = machine.directory_page(None, 100);
                let row = |room| machine.directory(room).unwrap_or_default();
                let line = |(subject, row): (_, DirectoryRow)| {
                    format!("{subject}: shard {}, active {}", row.shard, row.active)
                };
                page.into_iter().map(|(subject, room)| line((subject, row(room)))).collect()
            }
            "producer" => {
                let id = producer_id(words.at(2));
                let row = machine.rows().get(&Key::Producer(room(), id).encode());
                let Some(row) = row else { return vec!["no such producer".into()] };
                let row: ProducerRow = prost::Message::decode(row).unwrap();
                let (from, to) = range_of_answers(room(), id);
                let pages = machine.rows().scan(&from, &to, 100).into_iter();
                let pages = pages.map(|(_, value)| <AnswersRow as prost::Message>::decode(value).unwrap());
                let run = |run: AnswerRun| match run.reject.as_str() {
                    "" => format!("{}+{} at {}", run.first_number, run.count, run.first_sequence),
                    code => format!("{}+{} {code}", run.first_number, run.count),
                };
                let runs: Vec<_> = pages.flat_map(|page| page.runs).map(run).collect();
                vec![format!("last {}, runs [{}]", row.last_number, runs.join(", "))]
            }
            "devices" => {
                let devices = machine.device_bundles(&words.at(1).parse().unwrap());
                let mut names: Vec<_> = devices.iter().map(|bundle| self.say.device_of(bundle)).collect();
                names.sort();
                names
            }
            other => panic!("{other}: no such view"),
        }
    }
}
