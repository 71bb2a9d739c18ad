//! Subscriptions: opening one, and the rooms that it follows. `stream.rs` carries it on.
//!
//! Per room, the next sequence wanted is the only truth. Entries below it are skipped, and when the live
//! tail begins above it the gap is read from the segments, so that history joins the live tail, a slow
//! subscriber catches up, and a snapshot is survived by one and the same mechanism.

mod ephemeral;
mod position;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, Handle, RoomId};
use unibus_proto::subject::{Subject, SubjectFilter};
use unibus_proto::v1::{StartFrom, SubscribeRequest, SubscribeResponse, start_from::From};
use unibus_raft_store::env::{Env, InstantOf, now};

use super::access::{Access, Wanted};
use super::{Caller, Failure, Outcome, Service};
use crate::ephemeral::Listening;
use crate::fanout::{Item, Mailbox, Registration};

/// Rooms of one subscription: what it holds per room must stay bounded.
const ROOMS_MAX: usize = 20_000;
/// Subjects per look at the directory.
const LOOK: usize = 1_000;

/// An open subscription: [`next`](Self::next) until it ends.
pub struct Subscription<E: Env> {
    service: Service<E>,
    caller: Caller,
    user: Handle,
    filter: SubjectFilter,
    /// The room, when the filter is a subject: its end is the stream's.
    single: Option<RoomId>,
    start: From,
    until_end: bool,
    mailbox: Arc<Mailbox>,
    woken: mpsc::Receiver<()>,
    registration: Registration,
    rooms: BTreeMap<RoomId, Followed<E>>,
    /// Rooms to be read from the segments, in turn.
    behind: VecDeque<RoomId>,
    /// Rooms whose head at the moment of subscribing has not been delivered yet.
    targets: usize,
    caught_up: bool,
    /// Log time of each group when the subscription began: what was created later starts at 0.
    opened_ms: BTreeMap<GroupId, u64>,
    /// From the mailbox, not looked at yet.
    taken: VecDeque<Item>,
    out: VecDeque<SubscribeResponse>,
    /// Bytes of the entries in the last batch of `out`.
    filled_bytes: usize,
    history_turn: bool,
    audited: InstantOf<E>,
    ended: bool,
}

/// How a room is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Read from the segments; the mailbox ignores it.
    Behind,
    /// The head was reached, the mailbox takes entries: one more read closes the gap in between.
    Joining,
    /// From the mailbox.
    Live,
    /// The user is no member any more; the position is kept in case he comes back.
    Left,
}

/// A room of a subscription.
struct Followed<E: Env> {
    shard: GroupId,
    subject: Arc<str>,
    /// The next sequence wanted.
    next: u64,
    /// One past the highest sequence that is known to exist.
    wanted: u64,
    /// It starts at what is kept, and nothing has been delivered yet: the floor may move it.
    may_move: bool,
    /// One past the head at the moment of subscribing, until it is reached.
    target: Option<u64>,
    mode: Mode,
    /// Of an ephemeral room, while he is a member.
    listening: Option<Listening<E>>,
}

impl<E: Env> Service<E> {
    /// Opens a subscription.
    pub async fn subscribe(&self, caller: &Caller, request: SubscribeRequest) -> Outcome<Subscription<E>> {
        self.check_running()?;
        let (user, _) = caller.user()?;
        let filter: SubjectFilter = request.filter.parse()?;
        let resume = position::resumed(&request)?;
        let (mailbox, woken) = Mailbox::new();
        let registration = self.inner.registry.register(user, Arc::clone(&mailbox))?;
        let mut subscription = Subscription {
            service: self.clone(),
            caller: caller.clone(),
            user: user.clone(),
            filter,
            single: None,
            start: start(request.start.as_ref()),
            until_end: request.until_end,
            mailbox,
            woken,
            registration,
            rooms: BTreeMap::new(),
            behind: VecDeque::new(),
            targets: 0,
            caught_up: false,
            opened_ms: BTreeMap::new(),
            taken: VecDeque::new(),
            out: VecDeque::new(),
            filled_bytes: 0,
            history_turn: false,
            audited: now::<E>(),
            ended: false,
        };
        subscription.open(&resume).await?;
        Ok(subscription)
    }
}

/// Where rooms start that have no position of their own.
fn start(start: Option<&StartFrom>) -> From {
    start.and_then(|start| start.from).unwrap_or(From::Latest(unibus_proto::v1::Latest {}))
}

impl<E: Env> Subscription<E> {
    async fn open(&mut self, resume: &BTreeMap<RoomId, u64>) -> Outcome<()> {
        let shards = self.service.shards().clone();
        match self.filter.as_subject() {
            Some(subject) => self.open_single(Wanted::Subject(subject), resume).await?,
            None => {
                if self.needs_newest() {
                    shards.barriers(shards.ids()).await?;
                }
                self.remember_log_times();
                self.open_all(resume).await?;
            }
        }
        if self.rooms.values().any(|followed| followed.listening.is_some()) {
            self.service.inner.ephemeral.told().await;
        }
        Ok(())
    }

    async fn open_single(&mut self, wanted: Wanted, resume: &BTreeMap<RoomId, u64>) -> Outcome<()> {
        let access = if self.needs_newest() {
            self.service.readable_now(&self.caller, &wanted).await?
        } else {
            self.service.readable(&self.caller, &wanted).await?
        };
        self.single = Some(access.room);
        self.remember_log_times();
        self.open_room(access, resume).await
    }

    /// Whether the answer depends on what is committed right now.
    fn needs_newest(&self) -> bool {
        self.until_end || !matches!(self.start, From::Earliest(_))
    }

    fn remember_log_times(&mut self) {
        let shards = self.service.shards();
        let time = |group| Some((group, shards.group(group).ok()?.view(|machine| machine.log_time())));
        self.opened_ms = shards.ids().filter_map(time).collect();
    }

    async fn open_all(&mut self, resume: &BTreeMap<RoomId, u64>) -> Outcome<()> {
        for access in self.matching()? {
            self.open_room(access, resume).await?;
        }
        Ok(())
    }

    /// The rooms that match the filter and that the user may read, by the local replicas.
    fn matching(&self) -> Outcome<Vec<Access>> {
        let prefix = literal_prefix(&self.filter);
        // Subjects below the prefix come before it; a subject that is the prefix itself does not match.
        let mut after: Option<Subject> = prefix.trim_end_matches('.').parse().ok();
        let mut found = Vec::new();
        loop {
            let meta = self.service.shards().meta();
            let page = meta.view(|machine| machine.directory_page(after.as_ref(), LOOK));
            let is_last = page.len() < LOOK;
            for (subject, room) in page {
                if subject.as_str() > prefix && !subject.as_str().starts_with(prefix) {
                    return Ok(found);
                }
                if self.filter.matches(&subject) {
                    found.extend(self.service.readable_here(&self.user, &Wanted::Id(room)));
                }
                after = Some(subject);
            }
            if found.len() > ROOMS_MAX {
                return Err(self.too_many_rooms());
            }
            if is_last {
                return Ok(found);
            }
        }
    }

    fn too_many_rooms(&self) -> Failure {
        let message =
            format!("subscribe {}: more than {ROOMS_MAX} rooms match; use several narrower filters", self.filter);
        Failure::new(ErrorCode::QuotaExceeded, message)
    }

    /// Follows a room that was there when the subscription began.
    async fn open_room(&mut self, access: Access, resume: &BTreeMap<RoomId, u64>) -> Outcome<()> {
        let resumed = resume.get(&access.room);
        self.check_live(&access, resumed.is_some())?;
        let next = match resumed {
            Some(&next) => self.check_resumed(&access, next).await?,
            None => self.service.start_position(&access, self.start).await?,
        };
        let target = access.row.next_sequence;
        let may_move = resumed.is_none() && self.takes_what_is_kept();
        self.follow(access, next, may_move, (next < target).then_some(target)).await
    }

    /// Whether rooms start at what is kept, rather than at a place that was named.
    fn takes_what_is_kept(&self) -> bool {
        matches!(self.start, From::Earliest(_) | From::TimeMs(_))
    }

    /// A position above the local head may only be above what this node has applied.
    async fn check_resumed(&self, access: &Access, next: u64) -> Outcome<u64> {
        if next > access.row.next_sequence {
            let now = self.service.readable_now(&self.caller, &Wanted::Id(access.room)).await?;
            super::messages::check_position(&now.row, next)?;
        } else {
            super::messages::check_position(&access.row, next)?;
        }
        Ok(next)
    }

    async fn follow(&mut self, access: Access, next: u64, may_move: bool, target: Option<u64>) -> Outcome<()> {
        if self.rooms.len() >= ROOMS_MAX {
            return Err(self.too_many_rooms());
        }
        let listening = self.listen(&access).await?;
        let Access { room, shard, row, .. } = access;
        self.registration.follow(room);
        self.targets += usize::from(target.is_some());
        let subject = row.subject.into();
        let wanted = row.next_sequence;
        let followed = Followed { shard, subject, next, wanted, may_move, target, mode: Mode::Behind, listening };
        self.rooms.insert(room, followed);
        self.behind.push_back(room);
        Ok(())
    }

    /// Follows a room that was created, or that the user was added to, after the subscription began.
    async fn pick_up(&mut self, room: RoomId) -> Outcome<()> {
        if self.single.is_some_and(|single| single != room) || self.rooms.contains_key(&room) {
            return Ok(());
        }
        let Some(access) = self.service.find_in_shards(&self.user, room) else { return Ok(()) };
        if !access.row.subject.parse().is_ok_and(|subject| self.filter.matches(&subject)) {
            return Ok(());
        }
        let is_new = access.row.created_ms > self.opened_ms.get(&access.shard).copied().unwrap_or(0);
        let may_move = is_new || self.takes_what_is_kept();
        let next = match self.start {
            _ if is_new => access.row.floor,
            // What is stored after the subscription, as far as he may know of it: from his addition on.
            From::Latest(_) => access.member.since_sequence.max(access.row.floor),
            start => self.service.start_position(&access, start).await.unwrap_or(access.member.since_sequence),
        };
        self.follow(access, next, may_move, None).await
    }
}

impl<E: Env> Service<E> {
    /// A room that its shard may have created before this node's directory names it.
    fn find_in_shards(&self, user: &Handle, room: RoomId) -> Option<Access> {
        if let Some(access) = self.readable_here(user, &Wanted::Id(room)) {
            return Some(access);
        }
        self.shards().ids().filter(|group| !group.is_meta()).find_map(|shard| {
            let replica = self.shards().group(shard).ok()?;
            let (row, member) = replica.view(|machine| Some((machine.room(room)?, machine.member(room, user)?)))?;
            Some(Access { room, shard, row, member })
        })
    }
}

/// The tokens before the first wildcard, with the dot behind them.
fn literal_prefix(filter: &SubjectFilter) -> &str {
    let text = filter.as_str();
    match text.find(['*', '>']) {
        Some(wildcard) => &text[..wildcard],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_searched_from_the_literal_prefix() {
        let prefix = |filter: &str| literal_prefix(&filter.parse().expect("a filter")).to_string();
        assert_eq!(prefix("ops.>"), "ops.");
        assert_eq!(prefix("agent.*.in"), "agent.");
        assert_eq!(prefix(">"), "");
        assert_eq!(prefix("*.in"), "");
    }
}
