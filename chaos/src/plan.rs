//! From a seed to everything that will be done to a cluster: pure data, drawn from named sub-streams.

use unibus_proto::id::NodeId;
use unibus_raft_store::space::SpaceMarks;

use crate::sim::hub::LinkTiming;
use crate::sim::random::Random;

/// Whom a fault hits, decided when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Whoever leads this group.
    Leader(u32),
    /// This node.
    Node(NodeId),
}

/// A kind of fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process dies; the page cache stays.
    Kill {
        /// Whose.
        target: Target,
        /// How long it is down.
        down_ms: u64,
    },
    /// The power of one node goes.
    PowerCut {
        /// Whose.
        target: Target,
        /// How long it is down.
        down_ms: u64,
    },
    /// The power of all nodes goes at once.
    PowerCutAll {
        /// How long each is down, by node id.
        down_ms: Vec<u64>,
    },
    /// A node is cut off from the other nodes, and perhaps from the clients.
    Isolate {
        /// Who.
        target: Target,
        /// The clients too.
        clients: bool,
        /// For how long.
        for_ms: u64,
    },
    /// One direction between two nodes is cut.
    OneWay {
        /// From whom.
        from: NodeId,
        /// To whom.
        to: NodeId,
        /// For how long.
        for_ms: u64,
    },
    /// Every stream between two nodes breaks once.
    Break {
        /// One side.
        a: NodeId,
        /// The other.
        b: NodeId,
    },
    /// A node's syncs take 50 to 200 ms.
    SlowDisk {
        /// Whose.
        target: Target,
        /// For how long.
        for_ms: u64,
    },
    /// Disks fill up.
    DiskFull {
        /// Whose.
        targets: Vec<Target>,
        /// Bytes that can still be written.
        leave_bytes: u64,
        /// For how long.
        for_ms: u64,
    },
    /// The next sync of a file fails, and the node must end.
    BadSync {
        /// Whose.
        target: Target,
        /// Of a segment, not of the log.
        segment: bool,
        /// How long the node is down.
        down_ms: u64,
    },
    /// A node's wall clock becomes wrong.
    Clock {
        /// Whose.
        target: Target,
        /// By how much.
        error_ms: i64,
    },
}

/// A fault and its moment, from the start of the faults on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed {
    /// When.
    pub at_ms: u64,
    /// What.
    pub fault: Fault,
}

/// All that a run does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: u64,
    /// Shard groups.
    pub shards: u32,
    /// Rooms.
    pub rooms: u64,
    /// Producers.
    pub producers: u64,
    /// Longest pause of a producer between two messages.
    pub pause_ms_max: u64,
    /// How long faults and load last.
    pub load_ms: u64,
    /// How links behave all the time.
    pub link: LinkTiming,
    /// How long a sync of a healthy disk takes, nanoseconds.
    pub sync_nanos: (u64, u64),
    /// A group's log bytes between snapshots.
    pub snapshot_log_bytes: u64,
    /// A group's log bytes between checkpoints of its tables.
    pub checkpoint_log_bytes: u64,
    /// Bytes of changed rows at which a checkpoint is due; twice as many hold up the group.
    pub overlay_bytes: usize,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Bytes of a log file.
    pub wal_file_bytes: u64,
    /// Free bytes below which nodes take less.
    pub space: SpaceMarks,
    /// What goes wrong, in order of time.
    pub faults: Vec<Timed>,
}

/// How long load and faults last unless said otherwise.
pub const LOAD_MS: u64 = 12_000;
const KINDS: u64 = 8;
const POWER_CUT_ALL: u64 = 2;

impl Plan {
    /// The plan of a seed.
    pub fn of_seed(seed: u64) -> Self {
        Self::with_load(seed, LOAD_MS)
    }

    /// The plan of a seed whose load and faults last so long.
    pub fn with_load(seed: u64, load_ms: u64) -> Self {
        let mut random = Random::stream(seed, "plan", 0);
        // A stream of its own, or the seeds before it would have become others.
        let mut tables = Random::stream(seed, "plan.tables", 0);
        let nodes = 3;
        let shards = random.between(2, 3) as u32;
        let mut plan = Self {
            seed,
            nodes,
            shards,
            rooms: random.between(2, 5),
            producers: random.between(2, 4),
            pause_ms_max: [20, 60, 200][random.below(3) as usize],
            load_ms,
            link: link(&mut Random::stream(seed, "plan.net", 0)),
            sync_nanos: sync(&mut Random::stream(seed, "plan.disk", 0)),
            snapshot_log_bytes: [16 << 10, 64 << 10, 1 << 30][random.below(3) as usize],
            segment_bytes: [16 << 10, 64 << 10, 1 << 20][random.below(3) as usize],
            checkpoint_log_bytes: [2 << 10, 16 << 10, 1 << 30][tables.below(3) as usize],
            overlay_bytes: [4 << 10, 64 << 10, 8 << 20][tables.below(3) as usize],
            wal_file_bytes: [256 << 10, 1 << 20][random.below(2) as usize],
            space: SpaceMarks::default(),
            faults: Vec::new(),
        };
        plan.faults = faults(&mut Random::stream(seed, "plan.faults", 0), &plan);
        // As above.
        let mut space = Random::stream(seed, "plan.space", 0);
        // With small marks, or none, the log, segments and tables run into the end of the disk themselves.
        plan.space = [SpaceMarks::default(), marks(256 << 10, 64 << 10), marks(0, 0)][space.below(3) as usize];
        plan.faults.extend(disk_faults(&mut space, &plan));
        plan.faults.sort_by_key(|timed| timed.at_ms);
        plan
    }
}

fn link(random: &mut Random) -> LinkTiming {
    let slowest = [300_000, 2_000_000, 20_000_000][random.below(3) as usize];
    let lossy = random.chance(300_000);
    LinkTiming {
        delay_nanos: (30_000, slowest),
        stream_loss_per_million: if lossy { 500 } else { 0 },
        connection_loss_per_million: if lossy { 100 } else { 0 },
    }
}

/// Fast disks find races, slow ones leave much to lose when the power goes.
fn sync(random: &mut Random) -> (u64, u64) {
    [(100_000, 2_000_000), (1_000_000, 10_000_000), (10_000_000, 60_000_000)][random.below(3) as usize]
}

/// Each seed turns on a random half of the kinds, so that faults also meet alone; a fifth has none.
fn faults(random: &mut Random, plan: &Plan) -> Vec<Timed> {
    let kinds: Vec<u64> = (0..KINDS).filter(|_| random.chance(500_000)).collect();
    if random.chance(200_000) || kinds.is_empty() {
        return Vec::new();
    }
    let count = random.between(2, 8);
    let mut faults: Vec<_> = (0..count)
        .filter_map(|_| {
            let kind = *random.pick(&kinds)?;
            Some(Timed { at_ms: random.below(plan.load_ms), fault: fault(random, kind, plan) })
        })
        .collect();
    if random.chance(500_000) {
        // The moment that a broker must survive before all others, under load.
        let fault = fault(random, POWER_CUT_ALL, plan);
        faults.push(Timed { at_ms: random.below(plan.load_ms), fault });
    }
    faults.sort_by_key(|timed| timed.at_ms);
    faults
}

fn marks(low_bytes: u64, reserve_bytes: u64) -> SpaceMarks {
    SpaceMarks { low_bytes, reserve_bytes }
}

/// In some seeds: disks that fill up, and syncs that fail.
fn disk_faults(random: &mut Random, plan: &Plan) -> Vec<Timed> {
    if !random.chance(400_000) {
        return Vec::new();
    }
    let count = random.between(1, 3);
    let draw = |random: &mut Random| {
        if random.chance(300_000) {
            let (segment, down_ms) = (random.chance(300_000), random.between(0, 2_000));
            return Fault::BadSync { target: target(random, plan), segment, down_ms };
        }
        let nodes = random.between(1, plan.nodes);
        let targets = match nodes {
            1 => vec![target(random, plan)],
            _ => (1..=nodes).map(|node| Target::Node(NodeId(node))).collect(),
        };
        // Nothing, a part of a log file, some, and more than the reserve that nodes have unless told otherwise.
        let leave_bytes = [0, 100 << 10, 2 << 20, 200 << 20][random.below(4) as usize];
        Fault::DiskFull { targets, leave_bytes, for_ms: random.between(500, 6_000) }
    };
    (0..count).map(|_| Timed { fault: draw(random), at_ms: random.below(plan.load_ms) }).collect()
}

/// Half of the time a leader.
fn target(random: &mut Random, plan: &Plan) -> Target {
    if random.chance(500_000) {
        Target::Leader(random.below(u64::from(plan.shards) + 1) as u32)
    } else {
        Target::Node(NodeId(random.between(1, plan.nodes)))
    }
}

fn fault(random: &mut Random, kind: u64, plan: &Plan) -> Fault {
    let node = |random: &mut Random| NodeId(random.between(1, plan.nodes));
    let target = target(random, plan);
    let (down_ms, for_ms) = (random.between(0, 3_000), random.between(100, 6_000));
    let (a, step) = (node(random), random.between(1, plan.nodes - 1));
    let b = NodeId((a.0 - 1 + step) % plan.nodes + 1);
    match kind {
        0 => Fault::Kill { target, down_ms },
        1 => Fault::PowerCut { target, down_ms },
        POWER_CUT_ALL => Fault::PowerCutAll { down_ms: (0..plan.nodes).map(|_| random.between(0, 2_000)).collect() },
        3 => Fault::Isolate { target, clients: random.chance(500_000), for_ms },
        4 => Fault::OneWay { from: a, to: b, for_ms },
        5 => Fault::Break { a, b },
        6 => Fault::SlowDisk { target, for_ms },
        _ => Fault::Clock { target, error_ms: random.between(0, 120_000) as i64 - 60_000 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_plan_and_seeds_differ() {
        let faults = |seed| Plan::of_seed(seed).faults;
        assert_eq!(faults(5), faults(5));
        assert!((0..20).any(|seed| faults(seed) != faults(seed + 1)));
    }

    #[test]
    fn a_hundred_seeds_hold_every_kind_and_some_peace() {
        let plans: Vec<_> = (0..100).map(Plan::of_seed).collect();
        let has = |wanted: fn(&Fault) -> bool| {
            plans.iter().filter(|plan| plan.faults.iter().any(|timed| wanted(&timed.fault))).count()
        };
        assert!(has(|fault| matches!(fault, Fault::Kill { target: Target::Leader(_), .. })) >= 5);
        assert!(has(|fault| matches!(fault, Fault::PowerCutAll { .. })) >= 5);
        assert!(has(|fault| matches!(fault, Fault::Isolate { .. })) >= 5);
        assert!(has(|fault| matches!(fault, Fault::OneWay { .. })) >= 5);
        assert!(has(|fault| matches!(fault, Fault::DiskFull { .. })) >= 10);
        assert!(has(|fault| matches!(fault, Fault::DiskFull { targets, .. } if targets.len() > 1)) >= 5);
        assert!(has(|fault| matches!(fault, Fault::BadSync { .. })) >= 5);
        assert!(plans.iter().filter(|plan| plan.faults.is_empty()).count() >= 5);
    }
}
