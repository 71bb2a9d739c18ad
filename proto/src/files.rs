//! Files that several programs share: identities and profiles.
