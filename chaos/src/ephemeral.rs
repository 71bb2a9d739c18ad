//! An ephemeral room beside the others: who sends, who listens, and a member who is removed half way.

use std::time::Duration;

use bytes::Bytes;
use openraft_rt::AsyncRuntime;
use unibus_client::{Client, Error, Item, Start, SubscribeOptions};
use unibus_proto::code::Outcome as Happened;
use unibus_proto::files::Identity;
use unibus_proto::subject::{Subject, SubjectFilter};
use unibus_proto::v1::{RoomPolicy, RoomRole, UserRole};

use crate::history::Outcome;
use crate::invariants::Violation;
use crate::plan::Plan;
use crate::run::{Run, liveness};
use crate::sim::executor::Domain;
use crate::sim::grpc::SimPlatform;
use crate::sim::random::Random;
use crate::sim::runtime::{Handle, SimRuntime};
use crate::workload::Load;

/// Outside of what the readers of stored rooms select.
const SUBJECT: &str = "live.cpu";
/// Pause before a client that failed tries again.
const RETRY: Duration = Duration::from_millis(200);
/// After healing, a message reaches every member within this time.
const DELIVER: Duration = Duration::from_secs(30);
/// Longest pause between two messages.
const PAUSE_MS_MAX: u64 = 60;

fn subject() -> Subject {
    SUBJECT.parse().expect("a valid subject")
}

impl Run {
    /// Makes the room with a second member, and starts senders and listeners.
    pub(crate) async fn start_ephemeral(&self, plan: &Plan, members: &[Identity; 2]) -> Result<(), Violation> {
        let [alice, bob] = members;
        let client = self.load().connect(&self.platform(600), alice, None).await;
        let failed = |error: Error| liveness(format!("the ephemeral room cannot be made: {error}"));
        client.add_user(&bob.public_card(), UserRole::Member).await.map_err(failed)?;
        client.create_room(&subject(), RoomPolicy::default()).await.map_err(failed)?;
        client.add_member(subject(), &bob.handle, RoomRole::Member).await.map_err(failed)?;
        for (number, node) in (0..).zip(self.cluster.ids()) {
            self.listen(610 + 2 * number, alice, &format!("alice@n{node}"), Some(format!("n{node}")));
            self.listen(611 + 2 * number, bob, &format!("bob@n{node}"), Some(format!("n{node}")));
        }
        self.listen(640, alice, "alice", None);
        for (number, identity) in (0..).zip(members) {
            let random = Random::stream(plan.seed, "ephemeral", number);
            let (load, platform, identity) = (self.load().clone(), self.platform(650 + number), identity.clone());
            let domain = self.handle.open_domain(&format!("e{number}"));
            let _detached = self.handle.spawn_in(domain, send(load, platform, identity, number, random));
        }
        let (load, bob, after) = (self.load().clone(), bob.clone(), Duration::from_millis(plan.load_ms / 2));
        let _detached = self.handle.spawn_in(Domain::HARNESS, async move {
            SimRuntime::sleep(after).await;
            remove(load, client, bob).await;
        });
        Ok(())
    }

    fn listen(&self, number: u64, identity: &Identity, name: &str, pin: Option<String>) {
        let domain = self.handle.open_domain(&format!("l-{name}"));
        let (load, platform, identity) = (self.load().clone(), self.platform(number), identity.clone());
        let _detached = self.handle.spawn_in(domain, listen(load, platform, identity, name.into(), pin));
    }

    /// After healing: what is sent reaches each listener who is still a member.
    pub(crate) async fn drain_ephemeral(&self, members: &[Identity; 2]) -> Result<(), Violation> {
        let client = self.load().connect(&self.platform(670), &members[0], None).await;
        let publisher = client.publisher(subject()).open().await;
        let publisher = publisher.map_err(|error| liveness(format!("ephemeral room after healing: {error}")))?;
        let wanted = self.cluster.ids().len() + 1;
        let (mut waited, mut reached) = (Duration::ZERO, std::collections::BTreeSet::new());
        while waited < DELIVER {
            let body = Bytes::from(format!("after healing {waited:?}"));
            let number = self.recorder.begin_ephemeral(&body, members[0].handle.as_str());
            let sent = publisher.send(body).await;
            self.recorder.end_ephemeral(number, outcome(&sent));
            SimRuntime::sleep(RETRY).await;
            waited += RETRY;
            let history = self.recorder.history();
            let body = history.ephemeral.sends[number].body;
            let listeners = history.ephemeral.listeners.iter().filter(|listener| listener.received.contains(&body));
            reached.extend(listeners.filter(|it| it.name.starts_with("alice")).map(|it| it.name.clone()));
            if reached.len() == wanted {
                return Ok(());
            }
        }
        Err(liveness(format!(
            "ephemeral messages reach only {reached:?} of {wanted} listeners {DELIVER:?} after healing"
        )))
    }
}

fn outcome(answer: &Result<unibus_client::Ack, Error>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Acked { at: Handle::current().now_nanos(), sequence: 0 },
        Err(error) if error.outcome == Happened::None => Outcome::Refused,
        Err(_) => Outcome::Unknown,
    }
}

/// Sends until stopped; who is no member any more is refused.
async fn send(load: Load, platform: SimPlatform, identity: Identity, number: u64, mut random: Random) {
    let client = load.connect(&platform, &identity, None).await;
    let mut sent = 0;
    while !load.stopped() {
        let publisher = match client.publisher(subject()).open().await {
            Ok(publisher) => publisher,
            Err(_) => {
                SimRuntime::sleep(RETRY).await;
                continue;
            }
        };
        while !load.stopped() {
            sent += 1;
            let body = Bytes::from(format!("e{number} m{sent}"));
            let at = load.recorder.begin_ephemeral(&body, identity.handle.as_str());
            let answer = publisher.send(body).await;
            load.recorder.end_ephemeral(at, outcome(&answer));
            SimRuntime::sleep(Duration::from_millis(random.below(PAUSE_MS_MAX))).await;
        }
    }
}

/// Listens for ever; each subscription is a listener of its own.
async fn listen(load: Load, platform: SimPlatform, identity: Identity, name: String, pin: Option<String>) {
    let filter: SubjectFilter = SUBJECT.parse().expect("a valid filter");
    let client = load.connect(&platform, &identity, pin.clone()).await;
    loop {
        let options = SubscribeOptions { pin: pin.clone(), ..SubscribeOptions::default() };
        match client.subscribe(&filter, Start::Latest, options).await {
            Ok(mut subscription) => {
                let listener = load.recorder.listener(&name, identity.handle.as_str());
                while let Some(Ok(item)) = subscription.next().await {
                    if let Item::Message(message) = &item {
                        load.recorder.heard(listener, &message.body);
                    }
                }
            }
            Err(error) => Handle::current().note(&format!("{name} cannot listen: {error}")),
        }
        SimRuntime::sleep(RETRY).await;
    }
}

/// Removes a member, however long it takes, and records when it was done.
async fn remove(load: Load, client: Client<SimPlatform>, user: Identity) {
    loop {
        match client.remove_member(subject(), &user.handle).await {
            Ok(_) => return load.recorder.removed(user.handle.as_str()),
            Err(error) => Handle::current().note(&format!("{} cannot be removed: {error}", user.handle)),
        }
        SimRuntime::sleep(RETRY).await;
    }
}
