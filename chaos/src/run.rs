//! One run: form a cluster, load it, hurt it, heal it, let it settle, cut the power, judge.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openraft_rt::AsyncRuntime;
use unibus_client::{Client, Platform};
use unibus_proto::files::Identity;
use unibus_proto::id::{RequestId, RoomId};
use unibus_proto::v1::user_service_client::UserServiceClient;
use unibus_proto::v1::{AddUserRequest, DeviceKind, UserRole};

use crate::cluster::{Cluster, client_address};
use crate::history::Outcome;
use crate::invariants::{self, Violation};
use crate::plan::Plan;
use crate::record::Recorder;
use crate::sim::executor::Domain;
use crate::sim::grpc::SimPlatform;
use crate::sim::hub::Endpoint;
use crate::sim::random::Random;
use crate::sim::runtime::{Handle, SimRuntime};
use crate::workload::{self, Load, Producer, ReaderPlan};

/// A cluster of blank nodes forms, and a healed one serves, within this time.
pub(crate) const READY: Duration = Duration::from_secs(30);
/// Replicas are asked this often.
pub(crate) const SAMPLE: Duration = Duration::from_millis(50);

const LIVENESS: &str = "I14 liveness";

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// Everything broken; empty = pass.
    pub violations: Vec<Violation>,
    /// Publishes acknowledged.
    pub acked: usize,
    /// Publishes whose outcome nobody knows.
    pub unknown: usize,
    /// Entries given to readers.
    pub read: usize,
    /// Ephemeral messages given to listeners.
    pub heard: usize,
    /// Faults that hit, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Virtual time.
    pub virtual_nanos: u64,
    /// Hash over all events, and how many there were.
    pub digest: (u64, u64),
    /// The last events worth reading.
    pub last_events: Vec<String>,
}

/// Locks what no panic leaves half changed.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub(crate) fn liveness(what: String) -> Violation {
    Violation { invariant: LIVENESS, what }
}

/// Runs `scenario` in a fresh simulation and judges what it recorded.
pub fn simulate<F>(seed: u64, trace: Option<&std::path::Path>, scenario: impl FnOnce(Recorder) -> F) -> Report
where
    F: Future<Output = (Result<(), Violation>, Vec<String>, BTreeMap<&'static str, u64>)>,
{
    let mut runtime = SimRuntime::with_seed(seed);
    let handle = runtime.handle();
    if let Some(path) = trace
        && let Err(error) = handle.trace_to(path)
    {
        eprintln!("trace {}: {error}; the run goes on without it", path.display());
    }
    let (recorder, (ended, exits, faults)) = runtime.block_on(async {
        let recorder = Recorder::new();
        let ended = scenario(recorder.clone()).await;
        (recorder, ended)
    });
    let mut violations = Vec::new();
    violations.extend(
        handle
            .panics()
            .into_iter()
            .map(|panic| Violation { invariant: "no panic", what: format!("{}: {}", panic.domain, panic.message) }),
    );
    violations.extend(exits.into_iter().map(|what| Violation { invariant: "no unrequested exit", what }));
    let history = recorder.history();
    violations.extend(invariants::check(&history));
    violations.extend(ended.err());
    handle.flush_trace();
    let count =
        |wanted: fn(&Outcome) -> bool| history.publishes.iter().filter(|publish| wanted(&publish.outcome)).count();
    Report {
        violations,
        acked: history.acked().count(),
        unknown: count(|outcome| matches!(outcome, Outcome::Unknown)),
        read: history.readers.iter().flat_map(|reader| reader.rooms.values()).map(Vec::len).sum(),
        heard: history.ephemeral.listeners.iter().map(|listener| listener.received.len()).sum(),
        faults,
        virtual_nanos: handle.now_nanos(),
        digest: handle.digest(),
        last_events: handle.last_events(),
    }
}

/// Runs a plan.
pub fn run(plan: &Plan, trace: Option<&std::path::Path>) -> Report {
    simulate(plan.seed, trace, |recorder| async move {
        let run = Run::new(plan, Cluster::new(plan), recorder);
        let ended = run.all(plan).await;
        (ended, run.cluster.exits(), run.fired())
    })
}

/// A run's parts.
#[derive(Clone)]
pub struct Run {
    /// The nodes.
    pub cluster: Cluster,
    /// The history.
    pub recorder: Recorder,
    pub(crate) handle: Handle,
    seed: u64,
    load: Load,
    identity: Identity,
    pub(crate) fired: Arc<Mutex<BTreeMap<&'static str, u64>>>,
    pub(crate) clients: Arc<Mutex<Vec<Endpoint>>>,
}

impl Run {
    /// A run of `cluster`, whose nodes are all down.
    pub fn new(plan: &Plan, cluster: Cluster, recorder: Recorder) -> Self {
        let mut random = Random::stream(plan.seed, "user", 0);
        let handle = "alice".parse().expect("a valid handle");
        let identity = Identity::generate(handle, DeviceKind::Service, 1, |buffer| random.fill(buffer));
        let load = Load {
            recorder: recorder.clone(),
            addresses: cluster.ids().into_iter().map(client_address).collect(),
            cluster: cluster.cluster_id(),
            stop: Arc::new(AtomicBool::new(false)),
        };
        let (fired, clients) = (Arc::default(), Arc::default());
        Self { cluster, recorder, handle: Handle::current(), seed: plan.seed, load, identity, fired, clients }
    }

    /// The faults that hit so far, by kind.
    pub fn fired(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.fired).clone()
    }

    pub(crate) fn load(&self) -> &Load {
        &self.load
    }

    /// The user of all stored rooms, and a second one for the ephemeral room.
    fn members(&self, plan: &Plan) -> [Identity; 2] {
        let mut random = Random::stream(plan.seed, "user", 1);
        let bob = "bob".parse().expect("a valid handle");
        let bob = Identity::generate(bob, DeviceKind::Service, 1, |buffer| random.fill(buffer));
        [self.identity.clone(), bob]
    }

    pub(crate) fn platform(&self, number: u64) -> SimPlatform {
        let platform =
            SimPlatform::new(self.seed, number, self.cluster.hub().clone(), self.cluster.listeners().clone());
        locked(&self.clients).push(platform.endpoint());
        platform
    }

    async fn all(&self, plan: &Plan) -> Result<(), Violation> {
        let rooms = self.set_up(plan).await?;
        let members = self.members(plan);
        self.start_ephemeral(plan, &members).await?;
        let readers = self.start_readers(plan);
        let producers = self.start_producers(plan, &rooms).await;
        let sampler = self.handle.spawn_in(Domain::HARNESS, self.clone().sample());
        for timed in plan.faults.clone() {
            let run = self.clone();
            let _detached = self.handle.spawn_in(Domain::HARNESS, async move {
                SimRuntime::sleep(Duration::from_millis(timed.at_ms)).await;
                run.inflict(timed.fault).await;
            });
        }
        SimRuntime::sleep(Duration::from_millis(plan.load_ms)).await;
        self.heal(plan).await?;
        self.load.stop.store(true, Ordering::Relaxed);
        for producer in producers {
            if SimRuntime::timeout(Duration::from_secs(90), producer).await.is_err() {
                return Err(liveness("a producer has no answer 90 s after everything was healed".into()));
            }
        }
        self.handle.note("all answered");
        self.converge().await?;
        self.handle.note("converged");
        self.drain(&readers, &rooms).await?;
        self.drain_ephemeral(&members).await?;
        self.handle.note("drained");
        drop(sampler);
        self.power_cycle().await?;
        self.scan(&rooms).await?;
        self.scan_files().await
    }

    /// Starts the nodes in any order, adds the user, makes the rooms.
    pub async fn set_up(&self, plan: &Plan) -> Result<Vec<RoomId>, Violation> {
        let mut random = Random::stream(plan.seed, "start", 0);
        let mut ids = self.cluster.ids();
        random.shuffle(&mut ids);
        for id in ids {
            self.cluster.start(id);
            SimRuntime::sleep(Duration::from_millis(random.below(300))).await;
        }
        self.cluster.wait_ready(READY).await.map_err(liveness)?;
        self.add_user().await?;
        let client = self.load.connect(&self.platform(0), &self.identity, None).await;
        workload::create_rooms(&client, plan.rooms).await.map_err(liveness)
    }

    async fn add_user(&self) -> Result<(), Violation> {
        let platform = self.platform(1).local();
        let mut last = String::new();
        for attempt in 0..100 {
            let address = &self.load.addresses[attempt % self.load.addresses.len()];
            let mut client = UserServiceClient::new(platform.channel(address));
            let request = AddUserRequest {
                request_id: RequestId([1; 16]).to_bytes(),
                handle: self.identity.handle.as_str().into(),
                user_key: self.identity.user_key.verifying_key().to_bytes().to_vec().into(),
                role: UserRole::Admin.into(),
                ..AddUserRequest::default()
            };
            match client.add_user(request).await {
                Ok(_) => return Ok(()),
                Err(status) => last = status.to_string(),
            }
            SimRuntime::sleep(Duration::from_millis(100)).await;
        }
        Err(liveness(format!("the first user cannot be added: {last}")))
    }

    /// Publishes one message as a client of its own, and waits for the answer.
    pub async fn publish(&self, room: RoomId, body: &'static str) -> Outcome {
        let client = self.client().await;
        self.publish_as(&client, room, body).await
    }

    /// A client.
    pub async fn client(&self) -> Client<SimPlatform> {
        // A number of its own: two clients with one random stream would mint the same producer.
        let number = 400 + locked(&self.clients).len() as u64;
        self.load.connect(&self.platform(number), &self.identity, None).await
    }

    /// Publishes one message and waits for the answer.
    pub async fn publish_as(&self, client: &Client<SimPlatform>, room: RoomId, body: &'static str) -> Outcome {
        workload::publish_one(&self.load, client, room, body).await
    }

    fn start_readers(&self, plan: &Plan) -> Vec<usize> {
        let mut random = Random::stream(plan.seed, "readers", 0);
        let reader = |name: String, pin| ReaderPlan { name, pin, from_start: true, resumes: None };
        let mut plans: Vec<_> =
            self.cluster.ids().into_iter().map(|id| reader(format!("r@n{id}"), Some(format!("n{id}")))).collect();
        plans.push(reader("r-any".into(), None));
        plans.push(ReaderPlan { resumes: Some((random.between(1, 60), 12)), ..reader("r-resume".into(), None) });
        plans.push(ReaderPlan { from_start: false, ..reader("r-latest".into(), None) });
        let mut complete = Vec::new();
        for (number, plan) in (100..).zip(plans) {
            let index = self.recorder.reader(&plan.name);
            if plan.from_start {
                complete.push(index);
            }
            let domain = self.handle.open_domain(&plan.name);
            let (load, platform, identity) = (self.load.clone(), self.platform(number), self.identity.clone());
            let _detached = self.handle.spawn_in(domain, workload::read(load, platform, identity, plan, index));
        }
        complete
    }

    async fn start_producers(
        &self,
        plan: &Plan,
        rooms: &[RoomId],
    ) -> Vec<impl Future<Output = Result<(), crate::sim::join::SimJoinError>> + Send + Unpin + use<>> {
        let mut running = Vec::new();
        for number in 0..plan.producers {
            let domain = self.handle.open_domain(&format!("p{number}"));
            let random = Random::stream(plan.seed, "workload", number);
            let (run, rooms, pause) = (self.clone(), rooms.to_vec(), plan.pause_ms_max);
            running.push(self.handle.spawn_in(domain, async move {
                let client = run.load.connect(&run.platform(200 + number), &run.identity, None).await;
                Producer::new(number, run.load.clone(), client, rooms, random, pause).run().await;
            }));
        }
        let domain = self.handle.open_domain("p-named");
        let (run, room, count) = (self.clone(), rooms[0], plan.load_ms / 200);
        running.push(self.handle.spawn_in(domain, async move {
            let client = run.load.connect(&run.platform(300), &run.identity, None).await;
            workload::repeat(run.load.clone(), client, room, count).await;
        }));
        running
    }

    async fn sample(self) {
        loop {
            let statuses = self.cluster.statuses();
            self.recorder.history().statuses.extend(statuses);
            SimRuntime::sleep(SAMPLE).await;
        }
    }

    /// Ends all faults.
    async fn heal(&self, plan: &Plan) -> Result<(), Violation> {
        self.handle.note("heal");
        self.cluster.hub().heal_all();
        self.cluster.hub().set_timing(crate::sim::hub::LinkTiming {
            stream_loss_per_million: 0,
            connection_loss_per_million: 0,
            ..plan.link
        });
        self.fill(&self.cluster.ids(), None);
        for id in self.cluster.ids() {
            self.cluster.set_slow(id, false);
            if let Some(disk) = self.cluster.disk(id) {
                disk.fail_sync(None);
            }
            self.cluster.start(id);
        }
        self.cluster.wait_ready(READY).await.map_err(liveness)
    }
}
