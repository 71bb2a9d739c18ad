use std::fs;

use bytes::Bytes;
use proptest::prelude::*;
use unibus_proto::id::{ClusterId, GroupId};

use super::*;
use crate::sum::FileSum;
use crate::testing::TestEnv;
use crate::testing::crash::CrashEnv;

const PLACE: Place = Place { cluster: ClusterId([7; 16]), group: GroupId(3) };
const ROOM: RoomId = RoomId([1; 16]);
const OTHER: RoomId = RoomId([2; 16]);

fn delivery(sequence: u64, bytes: usize) -> StoredDelivery {
    let byte = (sequence % 251) as u8;
    StoredDelivery { sequence: Sequence(sequence), at_ms: 1000 + sequence, bytes: Bytes::from(vec![byte; bytes]) }
}

async fn load(dir: &Path, tail: u64, manifest: &[SegmentEntry]) -> Result<Segments<TestEnv>, StoreError> {
    Segments::load(TestEnv::new(1), dir.to_path_buf(), PLACE, tail, manifest, &BTreeSet::new()).await
}

/// Two rooms in turns, sealed after each third.
async fn filled(dir: &Path, tail: u64) -> Segments<TestEnv> {
    let segments = load(dir, tail, &[]).await.expect("empty");
    for segment in 0..3 {
        for part in 0..5 {
            let first = segment * 50 + part * 10;
            let mine: Vec<_> = (first..first + 10).map(|s| delivery(s, 300)).collect();
            segments.append(segment, ROOM, &mine).expect("appends");
            segments.append(segment, OTHER, &[delivery(segment * 5 + part, 70_000)]).expect("appends");
        }
        if segment < 2 {
            segments.cut(segment).expect("seals");
        }
        segments.flush().await.expect("flushes");
    }
    segments
}

async fn all(segments: &Segments<TestEnv>, room: RoomId) -> Result<Vec<StoredDelivery>, TimelineError> {
    let mut out: Vec<StoredDelivery> = vec![];
    loop {
        let from = Sequence(out.len() as u64);
        let more = segments.read(room, from, 4096, 7).await?;
        if more.is_empty() {
            return Ok(out);
        }
        out.extend(more);
    }
}

fn expected(count: u64, bytes: usize) -> Vec<StoredDelivery> {
    (0..count).map(|s| delivery(s, bytes)).collect()
}

#[tokio::test]
async fn reads_what_was_appended_from_memory_and_from_disk() {
    for tail in [0, 20_000, u64::MAX] {
        let dir = tempfile::tempdir().expect("tempdir");
        let segments = filled(dir.path(), tail).await;
        assert_eq!(all(&segments, ROOM).await, Ok(expected(150, 300)), "tail {tail}");
        assert_eq!(all(&segments, OTHER).await, Ok(expected(15, 70_000)), "tail {tail}");
    }
}

#[tokio::test]
async fn appended_is_readable_before_it_is_written() {
    let dir = tempfile::tempdir().expect("tempdir");
    let segments = filled(dir.path(), 0).await;
    segments.append(2, ROOM, &[delivery(150, 300), delivery(151, 300)]).expect("appends");
    let read = segments.read(ROOM, Sequence(149), usize::MAX, 10).await;
    assert_eq!(read, Ok(vec![delivery(149, 300), delivery(150, 300), delivery(151, 300)]));
}

#[tokio::test]
async fn caps_are_kept_but_one_is_always_given() {
    let dir = tempfile::tempdir().expect("tempdir");
    let segments = filled(dir.path(), 0).await;
    let read = async |bytes, count| segments.read(ROOM, Sequence(5), bytes, count).await.expect("reads").len();
    assert_eq!(read(usize::MAX, 3).await, 3);
    assert_eq!(read(900, 100).await, 3);
    assert_eq!(read(899, 100).await, 2);
    assert_eq!(read(0, 100).await, 1);
}

#[tokio::test]
async fn positions_outside_are_named() {
    let dir = tempfile::tempdir().expect("tempdir");
    let segments = filled(dir.path(), 0).await;
    assert_eq!(segments.read(ROOM, Sequence(150), 1, 1).await, Ok(vec![]));
    let outside = TimelineError::OutOfRange { floor: Sequence(0), head: Sequence(149) };
    assert_eq!(segments.read(ROOM, Sequence(151), 1, 1).await, Err(outside));
    assert_eq!(segments.read(RoomId([9; 16]), Sequence(0), 1, 1).await, Err(TimelineError::NotFound));
}

#[tokio::test]
async fn a_gap_and_a_closed_segment_are_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let segments = filled(dir.path(), 0).await;
    assert!(segments.append(2, ROOM, &[delivery(151, 1)]).is_err(), "a gap");
    let segments = filled(dir.path(), 0).await;
    assert!(segments.append(1, ROOM, &[delivery(150, 1)]).is_err(), "sealed");
    assert!(segments.append(3, ROOM, &[delivery(150, 1)]).is_err(), "not the open one");
}

fn room_number(number: u32) -> RoomId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    RoomId(id)
}

/// Several pages of rooms in each footer; some rooms are only in some of the files.
#[tokio::test]
async fn many_rooms_are_found_in_the_footers() {
    let dir = tempfile::tempdir().expect("tempdir");
    let segments = load(dir.path(), 0, &[]).await.expect("empty");
    let in_segment = |room: u32, segment: u64| segment == 2 || u64::from(room) % 3 != segment;
    let mut next = vec![0; 450];
    for segment in 0..5 {
        for room in (0..450).filter(|room| in_segment(*room, segment)) {
            let at = &mut next[room as usize];
            let deliveries: Vec<_> = (*at..*at + 3).map(|s| delivery(s, 20)).collect();
            *at += 3;
            segments.append(segment, room_number(room), &deliveries[..2]).expect("appends");
            segments.append(segment, room_number(room), &deliveries[2..]).expect("appends");
        }
        if segment < 4 {
            segments.cut(segment).expect("seals");
        }
        segments.flush().await.expect("flushes");
    }
    let again = load(dir.path(), 0, &segments.manifest()).await.expect("loads");
    for segments in [segments, again] {
        for room in [0, 1, 2, 99, 100, 101, 299, 448, 449] {
            let count = next[room as usize];
            assert_eq!(all(&segments, room_number(room)).await, Ok(expected(count, 20)), "room {room}");
            for from in (0..count).rev() {
                let read = segments.read(room_number(room), Sequence(from), 1, 1).await;
                assert_eq!(read, Ok(vec![delivery(from, 20)]), "room {room} backwards");
            }
            let outside = TimelineError::OutOfRange { floor: Sequence(0), head: Sequence(count - 1) };
            assert_eq!(segments.read(room_number(room), Sequence(count + 1), 1, 1).await, Err(outside));
        }
        let none = segments.read(room_number(450), Sequence(0), 1, 1).await;
        assert_eq!(none, Err(TimelineError::NotFound));
    }
}

#[tokio::test]
async fn a_dropped_file_raises_the_floor() {
    let dir = tempfile::tempdir().expect("tempdir");
    let segments = filled(dir.path(), 0).await;
    assert_eq!(segments.read(ROOM, Sequence(60), 1, 1).await.map(|read| read.len()), Ok(1));
    assert!(segments.drop_sealed(0));
    assert!(!segments.drop_sealed(0), "once");
    let below = TimelineError::OutOfRange { floor: Sequence(50), head: Sequence(149) };
    assert_eq!(segments.read(ROOM, Sequence(49), 1, 1).await, Err(below));
    assert_eq!(segments.read(ROOM, Sequence(50), usize::MAX, 200).await.map(|read| read.len()), Ok(100));
    assert!(!segments.manifest().iter().any(|entry| entry.id == 0));
    assert!(segment_path(dir.path(), 0).exists(), "a snapshot may list it");
    assert!(segments.drop_sealed(1), "in the middle");
    let gone = TimelineError::OutOfRange { floor: Sequence(100), head: Sequence(149) };
    assert_eq!(segments.read(ROOM, Sequence(50), 1, 1).await, Err(gone));
}

/// An open file keeps its space when its name is gone.
#[tokio::test]
async fn a_dropped_file_does_not_stay_open() {
    let dir = tempfile::tempdir().expect("tempdir");
    let segments = filled(dir.path(), 0).await;
    let is_open = || segments.files().by_segment.contains_key(&0);
    assert!(is_open(), "since it was written");
    segments.drop_sealed(0);
    assert!(!is_open());
    drop(segments.file(0, OpenMode::Read).await.expect("it has its name still"));
    assert!(!is_open(), "a late reader does not keep it");
}

/// A file that is made while the directory is being synced is not part of that sync.
#[tokio::test]
async fn a_new_name_is_durable_though_it_came_during_a_sync() {
    let dir = Path::new("/segments");
    for seed in 0..8 {
        let env = CrashEnv::new(seed);
        let segments = Segments::load(env.clone(), dir.into(), PLACE, 0, &[], &BTreeSet::new()).await.expect("empty");
        segments.append(0, ROOM, &[delivery(0, 300)]).expect("appends");
        let held = env.disk().hold_dir_syncs().await;
        let mut syncing = Box::pin(segments.sync());
        assert!(futures::poll!(syncing.as_mut()).is_pending(), "the directory is not synced");
        segments.cut(0).expect("seals");
        segments.append(1, ROOM, &[delivery(1, 300)]).expect("appends");
        segments.flush().await.expect("flushes");
        drop(held);
        syncing.await.expect("syncs");
        segments.append(1, ROOM, &[delivery(2, 300)]).expect("appends");
        segments.sync().await.expect("syncs");
        let manifest = segments.manifest();
        env.disk().crash();
        let again = Segments::load(env.clone(), dir.into(), PLACE, 0, &manifest, &BTreeSet::new()).await;
        let again = again.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(again.read(ROOM, Sequence(0), usize::MAX, 10).await, Ok(expected(3, 300)), "seed {seed}");
    }
}

#[tokio::test]
async fn a_restart_cuts_to_the_manifest_and_replay_writes_the_same_bytes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let segments = filled(dir.path(), 0).await;
    let manifest = segments.manifest();
    let head = delivery(150, 300);
    segments.append(2, ROOM, std::slice::from_ref(&head)).expect("appends");
    segments.cut(2).expect("seals");
    segments.append(3, ROOM, &[delivery(151, 300)]).expect("appends");
    segments.sync().await.expect("syncs");
    let (sealed, bytes) = (segments.sealed(2), fs::read(segment_path(dir.path(), 2)).expect("reads"));
    drop(segments);

    let again = load(dir.path(), 0, &manifest).await.expect("loads");
    assert_eq!(again.manifest(), manifest);
    assert!(!segment_path(dir.path(), 3).exists(), "replay makes it again");
    assert_eq!(all(&again, ROOM).await, Ok(expected(150, 300)));
    again.append(2, ROOM, &[head]).expect("replays");
    again.cut(2).expect("replays");
    again.flush().await.expect("flushes");
    assert_eq!(again.sealed(2), sealed);
    assert_eq!(fs::read(segment_path(dir.path(), 2)).expect("reads"), bytes);
    let whole = FileSum::of(&bytes);
    assert_eq!(sealed.map(|entry| FileSum { length: entry.length, hash: entry.hash }), Some(whole));
}

#[tokio::test]
async fn a_shorter_or_missing_file_is_refused_at_start() {
    let dir = tempfile::tempdir().expect("tempdir");
    let manifest = filled(dir.path(), 0).await.manifest();
    for entry in &manifest {
        let path = segment_path(dir.path(), entry.id);
        let good = fs::read(&path).expect("reads");
        for cut in [0, 63, 64, 65, good.len() / 2, good.len() - 1] {
            fs::write(&path, &good[..cut]).expect("cut");
            let error = load(dir.path(), 0, &manifest).await.err().expect("a shorter file").to_string();
            assert!(error.contains("is damaged at byte"), "{error}");
        }
        fs::remove_file(&path).expect("remove");
        assert!(load(dir.path(), 0, &manifest).await.is_err(), "a missing file");
        fs::write(&path, &good).expect("restore");
    }
    assert!(load(dir.path(), 0, &manifest).await.is_ok(), "nothing was changed by the refusals");
}

/// P9: what is damaged is never served.
#[tokio::test]
async fn a_flipped_bit_is_refused_at_start_or_corrupt_when_read() {
    let dir = tempfile::tempdir().expect("tempdir");
    let manifest = filled(dir.path(), 0).await.manifest();
    for entry in &manifest {
        let path = segment_path(dir.path(), entry.id);
        let good = fs::read(&path).expect("reads");
        let bits = (0..good.len() * 8).step_by(good.len() * 8 / 60);
        for bit in bits.chain((0..512).step_by(5)).chain((good.len() * 8 - 256..good.len() * 8).step_by(5)) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bad).expect("flip");
            let Ok(segments) = load(dir.path(), 0, &manifest).await else { continue };
            let read = [all(&segments, ROOM).await.map(|_| ()), all(&segments, OTHER).await.map(|_| ())];
            let corrupt = read.iter().any(|read| matches!(read, Err(TimelineError::Corrupt(_))));
            assert!(corrupt, "segment {} bit {bit}: {read:?}", entry.id);
        }
        fs::write(&path, &good).expect("restore");
    }
}

/// P9: damage is found though nobody reads it.
#[tokio::test]
async fn scrubbing_finds_every_flip_and_names_the_block() {
    let dir = tempfile::tempdir().expect("tempdir");
    let segments = filled(dir.path(), 0).await;
    assert_eq!(segments.scrubbable(), [0, 1]);
    let scrub = async || segments.scrub(1, |_| std::future::ready(())).await;
    assert_eq!((scrub().await, segments.damaged()), (None, vec![]));
    let path = segment_path(dir.path(), 1);
    let good = fs::read(&path).expect("reads");
    for at in [0, 63, 64, 70_000, 200_000, good.len() / 2, good.len() - 300, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&path, &bad).expect("flip");
        let found = scrub().await.expect("noticed");
        let named = at as u64 / (64 << 10) * (64 << 10);
        assert!(at > 300_000 || found.contains(&format!("byte {named} ")), "{at}: {found}");
    }
    assert_eq!(segments.damaged(), [1]);
    fs::write(&path, &good).expect("restore");
    assert_eq!(scrub().await, None);
    fs::remove_file(&path).expect("remove");
    segments.drop_sealed(1);
    assert_eq!((scrub().await, segments.damaged()), (None, vec![]), "dropped, not damaged");
}

/// P9: what is whole but in another place is refused as well.
#[tokio::test]
async fn a_file_in_the_place_of_another_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let manifest = filled(dir.path(), 0).await.manifest();
    fs::copy(segment_path(dir.path(), 0), segment_path(dir.path(), 1)).expect("copy");
    assert!(load(dir.path(), 0, &manifest).await.is_err());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = PLACE.decode_record(0, 64, &Bytes::from(bytes.clone()));
        let _ = footer::Summary::decode(PLACE, 0, 64, &bytes);
        let _ = footer::Summary::decode_page(PLACE, 0, 64, &bytes);
        let _ = footer::Summary::find(200, &bytes);
        let _ = PLACE.check_header(0, &bytes);
    }
}

#[tokio::test]
async fn what_finds_no_space_stays_in_memory_and_is_written_later() {
    let (env, dir) = (CrashEnv::new(1), Path::new("/segments"));
    let segments = Segments::load(env.clone(), dir.into(), PLACE, 0, &[], &BTreeSet::new()).await.expect("empty");
    env.disk().fill();
    for sequence in 0..20 {
        segments.append(0, ROOM, &[delivery(sequence, 70_000)]).expect("appends");
        segments.flush().await.expect("absorbed");
    }
    assert!(segments.sync().await.is_err_and(|error| crate::space::is_full(&error)), "a checkpoint has to know");
    let read = segments.read(ROOM, Sequence(0), usize::MAX, 100).await.expect("read from memory");
    assert_eq!(read, expected(20, 70_000));

    env.disk().set_capacity(None);
    segments.sync().await.expect("written");
    assert_eq!(segments.read(ROOM, Sequence(0), usize::MAX, 100).await.expect("read from disk"), expected(20, 70_000));
    let [entry] = segments.manifest()[..] else { panic!("one file") };
    env.disk().crash();
    assert_eq!(FileSum::of(&env.disk().bytes(&segment_path(dir, 0)).expect("there")).hash, entry.hash);
}

#[tokio::test]
async fn too_much_in_memory_holds_apply_up_until_there_is_space() {
    let (env, dir) = (CrashEnv::new(1), Path::new("/segments"));
    let segments = Segments::load(env.clone(), dir.into(), PLACE, 0, &[], &BTreeSet::new()).await.expect("empty");
    env.disk().fill();
    for sequence in 0..10 {
        segments.append(0, ROOM, &[delivery(sequence, 1 << 20)]).expect("appends");
    }
    let freed = async {
        crate::env::sleep::<CrashEnv>(std::time::Duration::from_millis(300)).await;
        env.disk().set_capacity(None);
        crate::env::now::<CrashEnv>()
    };
    let flushed = async {
        segments.flush().await.expect("waits, and does not fail");
        crate::env::now::<CrashEnv>()
    };
    let (freed, flushed) = futures::join!(freed, flushed);
    assert!(flushed >= freed, "it went on without space");
    assert_eq!(segments.read(ROOM, Sequence(0), usize::MAX, 100).await.expect("read"), expected(10, 1 << 20));
}
