//! `unibus-node`.

fn main() {}
