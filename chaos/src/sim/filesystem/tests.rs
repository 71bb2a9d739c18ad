use super::*;

fn random(seed: u64) -> Random {
    Random::stream(seed, "disk", 0)
}

fn durable_file(fs: &mut Filesystem, bytes: &'static [u8]) -> Inode {
    let inode = fs.create(Path::new("/d/f")).unwrap();
    fs.write(inode, 0, Bytes::from_static(bytes));
    fs.sync(inode, fs.changes(inode));
    fs.sync_dir(Path::new("/d")).unwrap();
    inode
}

#[test]
fn synced_bytes_and_names_survive_every_crash() {
    for seed in 0..200 {
        let mut fs = Filesystem::new(Path::new("/d"));
        durable_file(&mut fs, b"kept");
        fs.crash(&mut random(seed));
        let inode = fs.find(Path::new("/d/f")).unwrap();
        assert_eq!(fs.read(inode, 0, 4).unwrap(), "kept");
    }
}

#[test]
fn unsynced_bytes_are_lost_kept_torn_or_zero() {
    let (mut lost, mut whole, mut torn, mut zeros) = (0, 0, 0, 0);
    for seed in 0..400 {
        let mut fs = Filesystem::new(Path::new("/d"));
        let inode = durable_file(&mut fs, b"kept");
        fs.write(inode, 4, Bytes::from(vec![7; 2_000]));
        assert_eq!(fs.len(inode), 2_004);
        fs.crash(&mut random(seed));
        let length = fs.len(inode);
        let tail = fs.read(inode, 4, length as usize - 4).unwrap();
        assert_eq!(fs.read(inode, 0, 4).unwrap(), "kept");
        match tail.iter().filter(|byte| **byte == 7).count() {
            0 if tail.is_empty() => lost += 1,
            0 => zeros += 1,
            2_000 => whole += 1,
            _ => torn += 1,
        }
    }
    assert!(lost > 0 && whole > 0 && torn > 0 && zeros > 0, "{lost} {whole} {torn} {zeros}");
}

#[test]
fn names_that_were_not_dirsynced_may_be_lost_and_come_in_order() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let mut fs = Filesystem::new(Path::new("/d"));
        durable_file(&mut fs, b"x");
        fs.rename(Path::new("/d/f"), Path::new("/d/g")).unwrap();
        fs.create(Path::new("/d/h")).unwrap();
        fs.crash(&mut random(seed));
        seen.insert(fs.list(Path::new("/d")).unwrap().join(" "));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["f", "g", "g h"]);
}

#[test]
fn a_directory_whose_parent_was_not_synced_takes_its_files_along() {
    let mut lost = 0;
    for seed in 0..50 {
        let mut fs = Filesystem::new(Path::new("/d"));
        fs.create_dir_all(Path::new("/d/sub"));
        fs.create(Path::new("/d/sub/f")).unwrap();
        fs.sync_dir(Path::new("/d/sub")).unwrap();
        fs.crash(&mut random(seed));
        lost += u32::from(!fs.exists(Path::new("/d/sub/f")));
    }
    assert!(lost > 0);
}

#[test]
fn a_sync_covers_only_what_was_written_before_it_began() {
    let mut fs = Filesystem::new(Path::new("/d"));
    let inode = durable_file(&mut fs, b"");
    fs.write(inode, 0, Bytes::from_static(b"one"));
    let began = fs.changes(inode);
    fs.write(inode, 3, Bytes::from_static(b"two"));
    fs.sync(inode, began);
    let lost = (0..50).any(|seed| {
        let mut copy = Filesystem::new(Path::new("/d"));
        let inode = durable_file(&mut copy, b"");
        copy.write(inode, 0, Bytes::from_static(b"one"));
        copy.sync(inode, copy.changes(inode));
        copy.write(inode, 3, Bytes::from_static(b"two"));
        copy.crash(&mut random(seed));
        assert_eq!(copy.read(inode, 0, 3).unwrap(), "one");
        copy.len(inode) == 3
    });
    assert!(lost);
}

#[test]
fn a_short_read_says_what_is_there() {
    let mut fs = Filesystem::new(Path::new("/d"));
    let inode = durable_file(&mut fs, b"abc");
    assert_eq!(fs.read(inode, 1, 3).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}
