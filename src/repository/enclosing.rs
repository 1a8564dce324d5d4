//! Whether a path lies in a repository: nothing but Ekko's own files belongs there.

use std::path::{Component, Path, PathBuf};

use crate::repository::Layout;

/// Returns the repository that a path lies in, as seen from where links lead. The path and folders above it need not exist. A
/// repository does not lie in itself.
pub fn enclosing_repository(path: &Path) -> Option<PathBuf> {
    let resolved = resolve(&std::path::absolute(path).ok()?);
    resolved.ancestors().skip(1).find(|folder| is_repository(folder)).map(Path::to_owned)
}

/// Resolves the links of the part of a path that exists.
fn resolve(path: &Path) -> PathBuf {
    let existing = path.ancestors().find_map(|it| Some((it, it.canonicalize().ok()?)));
    let Some((existing, mut resolved)) = existing else { return path.to_owned() };
    for component in path.strip_prefix(existing).unwrap_or(Path::new("")).components() {
        match component {
            Component::ParentDir => {
                resolved.pop();
            }
            component => resolved.push(component),
        }
    }
    resolved
}

/// Says whether a folder is a repository, also if its settings are lost.
fn is_repository(folder: &Path) -> bool {
    let layout = Layout::new(folder);
    layout.packs().is_dir()
        && (layout.settings().is_file() || layout.sets().is_dir() && layout.state().is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::repository::{InitOptions, Repository};

    #[test]
    fn a_path_lies_in_a_repository_wherever_links_lead_and_whether_it_exists_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        Repository::init(&at("R"), &InitOptions::default()).unwrap();
        symlink("R/packs", at("link")).unwrap();
        for inside in
            ["R/new", "R/packs/new", "link/new", "R/no/folder/new", "link/../new", "no/../R/new", "link"]
        {
            assert_eq!(enclosing_repository(&at(inside)), Some(at("R")), "{inside}");
        }
        for outside in ["R", "R-new", "new", "no/new", "R/../new", "link/../../new"] {
            assert_eq!(enclosing_repository(&at(outside)), None, "{outside}");
        }
        // One that lost its settings is one all the same.
        fs::remove_file(at("R/ekko.toml")).unwrap();
        assert_eq!(enclosing_repository(&at("R/packs/new")), Some(at("R")));
    }
}
