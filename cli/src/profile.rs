//! Profiles on disk, and which of them is meant.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use unibus_proto::files::{FileError, Profile, config_dir, profile_path};

use crate::exit::{Failure, Result};
use crate::parse;

const DEFAULT: &str = "dev";

/// Where the choice of a profile comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `--profile` or `UNIBUS_PROFILE`.
    Asked,
    /// `profile use`.
    Current,
    /// Nobody chose: `dev` exists.
    Default,
}

impl Source {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "--profile or UNIBUS_PROFILE",
            Self::Current => "profile use",
            Self::Default => "default",
        }
    }
}

/// The directory that holds the profiles.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// A profile by name.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Its name.
    pub name: String,
    /// Who chose it.
    pub source: Source,
    /// What it says.
    pub profile: Profile,
}

impl Store {
    /// The user's own: `$XDG_CONFIG_HOME/unibus`, else `~/.config/unibus`.
    pub fn of_user() -> Result<Self> {
        let dir = config_dir().ok_or_else(|| {
            Failure::local("no home for profiles: neither XDG_CONFIG_HOME nor HOME is set")
                .remedy("export HOME=/path/to/your/home")
        })?;
        Ok(Self { dir })
    }

    /// One in another place.
    #[cfg(test)]
    pub fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    /// The file of a profile.
    pub fn path(&self, name: &str) -> PathBuf {
        profile_path(&self.dir, name)
    }

    /// The names of all profiles, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let dir = self.dir.join("profiles");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Failure::local(format!("{}: {error}", dir.display()))),
        };
        let mut names: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
            .filter(|name| parse::profile_name(name).is_ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// The name written by `profile use`.
    pub fn current(&self) -> Result<Option<String>> {
        match fs::read_to_string(self.current_path()) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|name| !name.is_empty())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::local(format!("{}: {error}", self.current_path().display()))),
        }
    }

    /// Which profile is meant, without reading it.
    pub fn choose_name(&self, asked: Option<&str>) -> Result<Option<(String, Source)>> {
        if let Some(name) = asked {
            return Ok(Some((name.into(), Source::Asked)));
        }
        if let Some(name) = self.current()? {
            return Ok(Some((name, Source::Current)));
        }
        Ok(self.path(DEFAULT).exists().then(|| (DEFAULT.into(), Source::Default)))
    }

    /// The profile that is meant.
    pub fn choose(&self, asked: Option<&str>) -> Result<Chosen> {
        let (name, source) = self.choose_name(asked)?.ok_or_else(|| {
            Failure::local(format!("no profile: none is chosen, and {} does not exist", self.path(DEFAULT).display()))
                .remedy(
                    "unibusctl profile add NAME --identity FILE --ca FILE --node HOST:PORT   \
                     (or start a cluster here: unibus-node dev)",
                )
        })?;
        Ok(Chosen { profile: self.load(&name)?, name, source })
    }

    /// Reads a profile.
    pub fn load(&self, name: &str) -> Result<Profile> {
        let path = self.path(name);
        Profile::load(&path).map_err(|error| match error {
            FileError::Io { error, .. } if error.kind() == ErrorKind::NotFound => self.unknown(name),
            other => Failure::local(format!("profile {name:?}: {other}")),
        })
    }

    fn unknown(&self, name: &str) -> Failure {
        let names = self.names().unwrap_or_default();
        let known = if names.is_empty() { "there are none".into() } else { format!("there are: {}", names.join(", ")) };
        Failure::local(format!("no profile {name:?}; {known}")).remedy("unibusctl profile list")
    }

    /// Writes a profile. Returns whether it replaced one.
    pub fn save(&self, name: &str, profile: &Profile) -> Result<bool> {
        let path = self.path(name);
        let replaced = path.exists();
        profile.save(&path).map_err(|error| Failure::local(format!("profile {name:?}: {error}")))?;
        Ok(replaced)
    }

    /// Uses a profile from now on.
    pub fn set_current(&self, name: &str) -> Result<()> {
        self.load(name)?;
        let (path, fresh) = (self.current_path(), self.dir.join(format!("current.{}.tmp", std::process::id())));
        fs::write(&fresh, format!("{name}\n"))
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|error| Failure::local(format!("{}: {error}", path.display())))
    }

    /// Forgets a profile, and that it was the current one.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        fs::remove_file(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => self.unknown(name),
            _ => Failure::local(format!("{}: {error}", path.display())),
        })?;
        if self.current()?.as_deref() == Some(name) {
            fs::remove_file(self.current_path())
                .map_err(|error| Failure::local(format!("{}: {error}", self.current_path().display())))?;
        }
        Ok(())
    }

    fn current_path(&self) -> PathBuf {
        self.dir.join("current")
    }
}

/// A path that stays valid from another directory.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).map_err(|error| Failure::local(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        Profile::new("id".into(), "ca".into(), vec!["127.0.0.1:7400".into()])
    }

    #[test]
    fn flag_then_current_then_dev() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::in_dir(dir.path());
        let failure = store.choose(None).unwrap_err();
        assert!(failure.remedy.is_some_and(|remedy| remedy.contains("profile add")));
        store.save("dev", &profile()).unwrap();
        store.save("bob", &profile()).unwrap();
        assert_eq!(store.choose(None).unwrap().source, Source::Default);
        store.set_current("bob").unwrap();
        let chosen = store.choose(None).unwrap();
        assert_eq!((chosen.name.as_str(), chosen.source), ("bob", Source::Current));
        let chosen = store.choose(Some("dev")).unwrap();
        assert_eq!((chosen.name.as_str(), chosen.source), ("dev", Source::Asked));
        assert_eq!(store.names().unwrap(), ["bob", "dev"]);
    }

    #[test]
    fn unknown_profile_names_those_that_exist() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::in_dir(dir.path());
        store.save("bob", &profile()).unwrap();
        let message = store.choose(Some("bop")).unwrap_err().message;
        assert!(message.contains("\"bop\"") && message.contains("bob"), "{message}");
        assert!(store.set_current("bop").is_err());
        assert!(store.remove("bop").is_err());
    }

    #[test]
    fn removing_the_current_one_falls_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::in_dir(dir.path());
        assert!(!store.save("dev", &profile()).unwrap());
        assert!(store.save("dev", &profile()).unwrap());
        store.save("bob", &profile()).unwrap();
        store.set_current("bob").unwrap();
        store.remove("bob").unwrap();
        assert_eq!(store.choose(None).unwrap().name, "dev");
    }
}
