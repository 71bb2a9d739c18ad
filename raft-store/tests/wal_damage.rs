//! A small WAL, acknowledged and covered, then cut at every byte, flipped at every bit, zeroed from every
//! byte on, and hit at random: it is either refused, naming file and offset, or whole.

mod wal_model;

use std::collections::BTreeMap;

use unibus_raft_store::env::Rng;
use unibus_raft_store::testing::SeededRng;
use unibus_raft_store::wal::WalConfig;
use unibus_raft_store::wal::frame::{Record, decode_head};
use unibus_raft_store::wal::recover::{Damage, Recovered, Replay};

use wal_model::{CLUSTER, History, Script, logs_of};

type Images = BTreeMap<u64, Vec<u8>>;

fn recover(images: &Images) -> Result<Option<Recovered>, Damage> {
    recover_from(Replay::new(CLUSTER), images)
}

fn recover_from<'a>(
    mut replay: Replay,
    images: impl IntoIterator<Item = (&'a u64, &'a Vec<u8>)>,
) -> Result<Option<Recovered>, Damage> {
    for (generation, bytes) in images {
        replay.file(*generation, bytes)?;
    }
    replay.finish()
}

/// A small WAL that was written and shut down, and what was acknowledged, step by step.
async fn written(file_bytes: u64, steps: u64, purges: bool) -> (Images, History) {
    let config = WalConfig { file_bytes, spare_files: 1, ..WalConfig::default() };
    let mut script = Script::create(11, config).await;
    script.purges = purges;
    for _ in 0..steps {
        script.step().await.expect("the disk works");
    }
    script.wal.shutdown().await;
    (script.images(), script.history)
}

/// Recovery must refuse, or find everything.
fn judge(
    images: &Images,
    result: Result<Option<Recovered>, Damage>,
    history: &History,
    what: impl Fn() -> String,
) -> bool {
    match result {
        Ok(Some(recovered)) => {
            let found = logs_of(images, &recovered);
            assert!(found == *history.newest(), "{}: silently found something else: {found:?}", what());
            true
        }
        Ok(None) => panic!("{}: taken for an empty WAL", what()),
        Err(damage) => {
            assert!(damage.file.ends_with(".wal") && !damage.what.is_empty(), "{}: {damage}", what());
            false
        }
    }
}

fn total(images: &Images) -> usize {
    images.values().map(Vec::len).sum()
}

/// Flips each bit of one file; how often recovery refused, and found everything.
fn flip_every_bit(images: &Images, history: &History, generation: u64) -> (usize, usize) {
    let mut before = Replay::new(CLUSTER);
    for (generation, bytes) in images.range(..generation) {
        before.file(*generation, bytes).expect("is whole");
    }
    let mut images = images.clone();
    let (mut refused, mut harmless) = (0, 0);
    for bit in 0..images[&generation].len() * 8 {
        let flip = |images: &mut Images| images.get_mut(&generation).expect("is there")[bit / 8] ^= 1 << (bit % 8);
        flip(&mut images);
        let result = recover_from(before.clone(), images.range(generation..));
        let whole = judge(&images, result, history, || format!("file {generation}, bit {bit}"));
        *if whole { &mut harmless } else { &mut refused } += 1;
        flip(&mut images);
    }
    (refused, harmless)
}

#[tokio::test]
async fn every_flipped_bit_is_refused_or_harmless() {
    let (images, history) = written(4 << 10, 40, true).await;
    assert!(total(&images) <= 64 << 10 && images.len() >= 3, "{} files", images.len());
    assert!(judge(&images, recover(&images), &history, || "untouched".into()));
    let (images, history) = (&images, &history);
    let counts: Vec<_> = std::thread::scope(|scope| {
        let files = images.keys().map(|file| scope.spawn(move || flip_every_bit(images, history, *file)));
        let threads: Vec<_> = files.collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    for (refused, harmless) in counts {
        assert!(refused > 0 && harmless > 0, "refused {refused}, harmless (padding, cover frame) {harmless}");
    }
}

#[tokio::test]
async fn a_cut_file_is_refused() {
    let (images, _) = written(8 << 10, 60, true).await;
    for (generation, bytes) in &images {
        for length in 0..bytes.len() {
            let mut cut = images.clone();
            cut.insert(*generation, bytes[..length].to_vec());
            let damage = recover(&cut).expect_err("a file shorter than its size");
            assert!(damage.file.contains(&generation.to_string()), "{damage}");
        }
        let mut longer = images.clone();
        longer.get_mut(generation).expect("is there").extend([0; 3000]);
        assert!(recover(&longer).is_ok(), "zeros behind the file");
    }
}

/// Steps that were acknowledged in the frames of `bytes` (one file) that are as they were in `original`.
fn steps_that_survive(original: &[u8], bytes: &[u8]) -> usize {
    let (mut offset, mut steps) = (0, 0);
    while let Ok(head) = decode_head(&original[offset..]) {
        let end = offset + head.frame_bytes() as usize;
        let used = offset + 72 + head.rows.len() * 40 + head.payload_bytes as usize;
        if original[offset..used] != bytes[offset..used] {
            break;
        }
        let holds = |record: &Record| !matches!(record, Record::Committed(_));
        steps += usize::from(!head.header.start && head.rows.iter().any(|row| holds(&row.record)));
        offset = end;
        if offset >= original.len() {
            break;
        }
    }
    steps
}

#[tokio::test]
async fn a_zeroed_tail_loses_only_what_no_watermark_covers() {
    let (images, history) = written(16 << 10, 60, false).await;
    let before: usize = images.values().rev().skip(1).map(|bytes| steps_that_survive(bytes, bytes)).sum();
    let (last, bytes) = images.last_key_value().expect("has files");
    for start in 0..bytes.len() {
        let mut zeroed = images.clone();
        zeroed.get_mut(last).expect("is there")[start..].fill(0);
        let survive = before + steps_that_survive(bytes, &zeroed[last]);
        match recover(&zeroed) {
            Ok(recovered) => {
                let found = logs_of(&zeroed, &recovered.expect("has files"));
                assert!(found == history.states[survive], "zeros from {start}: expected step {survive}");
            }
            Err(damage) => assert!(start < 1024, "only without its first frame is the file refused: {damage}"),
        }
    }
    for (generation, bytes) in images.iter().rev().skip(1) {
        for start in (0..bytes.len()).step_by(64) {
            let mut zeroed = images.clone();
            zeroed.get_mut(generation).expect("is there")[start..].fill(0);
            judge(&zeroed, recover(&zeroed), &history, || format!("file {generation}, zeros from {start}"));
        }
    }
}

#[tokio::test]
async fn random_damage_in_a_full_wal_is_refused_or_harmless() {
    let (images, history) = written(16 << 10, 300, false).await;
    assert!(images.len() > 5, "{} files", images.len());
    let rng = SeededRng::new(5);
    let below = |bound: usize| (rng.next_u64() % bound as u64) as usize;
    let generations: Vec<_> = images.keys().copied().collect();
    for round in 0..1000 {
        let mut hit = images.clone();
        for _ in 0..1 + below(3) {
            let bytes = hit.get_mut(&generations[below(generations.len())]).expect("is there");
            let at = below(bytes.len());
            match below(3) {
                0 => bytes[at] ^= 1 << below(8),
                1 => bytes[at / 512 * 512..][..512].fill(0),
                _ => (at..(at + 700).min(bytes.len())).for_each(|at| bytes[at] = rng.next_u64() as u8),
            }
        }
        if hit == images {
            continue;
        }
        match recover(&hit) {
            // Several hits together may take the last frames with their covers: that is a torn tail.
            Ok(recovered) => {
                let found = logs_of(&hit, &recovered.expect("has files"));
                assert!(history.states.contains(&found), "round {round}: {found:?}");
                let last = images.last_key_value().expect("has files").0;
                let earlier = hit.iter().filter(|(generation, _)| *generation != last);
                let before: usize =
                    earlier.map(|(generation, _)| steps_that_survive(&images[generation], &images[generation])).sum();
                let survive = before + steps_that_survive(&images[last], &hit[last]);
                assert!(found == history.states[survive], "round {round}");
            }
            Err(damage) => assert!(damage.file.ends_with(".wal"), "{damage}"),
        }
    }
}

#[tokio::test]
async fn a_missing_file_is_refused() {
    let (images, history) = written(8 << 10, 100, false).await;
    let mut generations: Vec<_> = images.keys().copied().collect();
    generations.pop();
    for generation in generations {
        let mut missing = images.clone();
        missing.remove(&generation);
        judge(&missing, recover(&missing), &history, || format!("file {generation} is gone"));
    }
}

#[tokio::test]
async fn files_of_another_cluster_are_refused() {
    let (images, _) = written(8 << 10, 10, false).await;
    let mut replay = Replay::new(unibus_proto::id::ClusterId([9; 16]));
    let damage = replay.file(1, &images[&1]).expect_err("another cluster");
    assert!(damage.what.contains("belongs to cluster"), "{damage}");
}
