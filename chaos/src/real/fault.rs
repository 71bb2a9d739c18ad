//! A round's faults as data: which node, when, what. Pure.

use crate::sim::random::Random;

/// Something done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// Its file system loses power; the process lives on until it is killed.
    CutPower,
    /// `kill -9`.
    Kill,
    /// It is started, on a disk that has power again.
    Start,
    /// SIGSTOP.
    Pause,
    /// SIGCONT.
    Resume,
}

/// A deed at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timed {
    /// Milliseconds since the round began.
    pub at_ms: u64,
    /// Which node, from 0.
    pub node: usize,
    /// What.
    pub deed: Deed,
}

/// The faults of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundPlan {
    /// What it is called, e.g. "power n2, kill n1".
    pub name: String,
    /// Which kinds.
    pub kinds: Vec<&'static str>,
    /// What to do, in order of time.
    pub deeds: Vec<Timed>,
}

/// How faults are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Chances {
    /// Nodes.
    pub nodes: usize,
    /// Of a million power cuts, so many hit all nodes at once.
    pub all_per_million: u32,
    /// Of a million rounds, so many have another fault beside the power cut.
    pub beside_per_million: u32,
    /// Length of a round's load.
    pub load_ms: u64,
}

const POWER_ONE: &str = "power-one";
/// Disks that lose power one after the other do so within this time; a killed node is down for so long, and
/// a paused one stands for so long.
const HANG_MS_MAX: u64 = 60;
const DOWN_MS_MAX: u64 = 600;
const PAUSE_MS_MAX: u64 = 1_500;
/// A start that is cut short is cut within this time.
const AGAIN_MS_MAX: u64 = 400;
const AGAIN_PER_MILLION: u32 = 200_000;

impl RoundPlan {
    /// The faults of round `number` of `seed`.
    pub fn draw(seed: u64, number: u64, chances: &Chances) -> Self {
        let mut random = Random::stream(seed, "round", number);
        let at = random.between(chances.load_ms / 20, chances.load_ms * 7 / 10);
        let mut plan = Self { name: String::new(), kinds: Vec::new(), deeds: Vec::new() };
        if random.chance(chances.all_per_million) {
            plan.cut_all(at, chances.nodes, &mut random);
        } else {
            plan.cut_one(at, chances, &mut random);
        }
        // At one moment all disks lose power before the first process dies.
        plan.deeds.sort_by_key(|timed| (timed.at_ms, timed.deed));
        plan
    }

    /// Whether one node loses power, once, and nothing happens beside it.
    pub fn is_of_one_node(&self) -> bool {
        self.kinds == [POWER_ONE]
    }

    fn cut_all(&mut self, at: u64, nodes: usize, random: &mut Random) {
        self.add("power-all", "power of all".into());
        let mut order: Vec<_> = (0..nodes).collect();
        random.shuffle(&mut order);
        let dead_at = at + hang(random);
        for node in order {
            self.push(at, node, Deed::CutPower);
            self.push(dead_at, node, Deed::Kill);
            self.push(dead_at + random.below(DOWN_MS_MAX), node, Deed::Start);
        }
    }

    fn cut_one(&mut self, at: u64, chances: &Chances, random: &mut Random) {
        let node = random.below(chances.nodes as u64) as usize;
        self.add(POWER_ONE, format!("power of n{}", node + 1));
        let start = self.cut(node, at, random);
        if random.chance(AGAIN_PER_MILLION) {
            self.add("power-again", "again at its start".into());
            self.cut(node, start + random.between(1, AGAIN_MS_MAX), random);
        }
        if random.chance(chances.beside_per_million) && chances.nodes > 1 {
            let other = (node + random.between(1, chances.nodes as u64 - 1) as usize) % chances.nodes;
            let at = at + random.below(DOWN_MS_MAX);
            if random.chance(500_000) {
                self.add("kill", format!("kill n{}", other + 1));
                self.push(at, other, Deed::Kill);
                self.push(at + random.below(DOWN_MS_MAX), other, Deed::Start);
            } else {
                self.add("pause", format!("pause n{}", other + 1));
                self.push(at, other, Deed::Pause);
                self.push(at + random.between(50, PAUSE_MS_MAX), other, Deed::Resume);
            }
        }
    }

    /// Answers when the node starts again.
    fn cut(&mut self, node: usize, at: u64, random: &mut Random) -> u64 {
        let dead_at = at + hang(random);
        let start = dead_at + random.below(DOWN_MS_MAX);
        self.push(at, node, Deed::CutPower);
        self.push(dead_at, node, Deed::Kill);
        self.push(start, node, Deed::Start);
        start
    }

    fn add(&mut self, kind: &'static str, words: String) {
        self.kinds.push(kind);
        self.name += if self.name.is_empty() { "" } else { ", " };
        self.name += &words;
    }

    fn push(&mut self, at_ms: u64, node: usize, deed: Deed) {
        self.deeds.push(Timed { at_ms, node, deed });
    }
}

/// Half of the processes die with their disk, the others notice first.
fn hang(random: &mut Random) -> u64 {
    if random.chance(500_000) { 0 } else { random.below(HANG_MS_MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANCES: Chances =
        Chances { nodes: 3, all_per_million: 300_000, beside_per_million: 400_000, load_ms: 3_000 };

    fn rounds() -> impl Iterator<Item = RoundPlan> {
        (0..1_000).map(|number| RoundPlan::draw(7, number, &CHANCES))
    }

    #[test]
    fn a_seed_decides_everything_and_every_kind_comes() {
        assert!(rounds().eq(rounds()));
        let count = |kind| rounds().filter(|plan| plan.kinds.contains(&kind)).count();
        assert!((250..350).contains(&count("power-all")));
        assert_eq!(count("power-all") + count("power-one"), 1_000);
        assert!(rounds().filter(RoundPlan::is_of_one_node).all(|plan| plan.deeds.len() == 3));
        assert!(rounds().filter(RoundPlan::is_of_one_node).count() > 50);
        for kind in ["power-again", "kill", "pause"] {
            assert!(count(kind) > 50, "{kind} came {} times in 1000", count(kind));
        }
    }

    #[test]
    fn every_node_runs_at_the_end_and_never_starts_while_it_runs() {
        for plan in rounds() {
            let (mut runs, mut stands) = ([true; 3], [false; 3]);
            for Timed { node, deed, .. } in plan.deeds {
                match deed {
                    Deed::CutPower => assert!(runs[node]),
                    Deed::Kill => runs[node] = false,
                    Deed::Start => assert!(!std::mem::replace(&mut runs[node], true), "{}", plan.name),
                    Deed::Pause => stands[node] = true,
                    Deed::Resume => stands[node] = false,
                }
            }
            assert_eq!((runs, stands), ([true; 3], [false; 3]), "{}", plan.name);
        }
    }
}
