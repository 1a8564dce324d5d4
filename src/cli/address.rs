//! Recognizes a repository that is an address, and not the path of a folder.
//!
//! A mistyped address must never become a folder of that name. So a path whose first component contains a colon is refused;
//! `./s3:bucket` names such a folder.

use crate::remote::Address;

/// Schemes of other programs' repositories.
const FOREIGN: [&str; 18] = [
    "azure", "b2", "cifs", "file", "ftp", "gs", "nfs", "pbs", "rbd", "rclone", "rest", "s3", "scp", "sftp",
    "smb", "ssh", "swift", "webdav",
];

/// Returns why a text is no repository that Ekko knows, with the right spelling. `None` if it is the URL of a service, or a
/// path.
pub(super) fn misspelled(text: &str) -> Option<String> {
    if Address::is_url(text) {
        return None;
    }
    let first = text.split('/').next().unwrap_or_default();
    let (scheme, rest) = split(first)?;
    let lower = scheme.to_ascii_lowercase();
    let port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let advice = if lower == "http" || lower == "https" {
        let host = text.get(scheme.len() + 1..).unwrap_or_default().trim_start_matches('/');
        let host = if host.is_empty() { "HOST:6800" } else { host };
        format!("the URL of a service begins with {lower}://: use -r {lower}://{host}")
    } else if lower == "file" {
        let path = text.get(scheme.len() + 1..).unwrap_or_default();
        let path = path.strip_prefix("//").unwrap_or(path);
        format!("for a local folder, use its path: -r {path}")
    } else if FOREIGN.contains(&lower.as_str()) {
        format!(
            "Ekko has no {lower} repositories: use the path of a folder, or a service: -r https://HOST:6800"
        )
    } else if port(rest) {
        format!("for a service, use -r https://{scheme}:{rest}")
    } else {
        let host = scheme.rsplit('@').next().unwrap_or_default();
        format!("for a service, use -r https://{host}:6800")
    };
    Some(format!("cannot use repository {text}: {advice} (for a folder of this name: -r ./{text})"))
}

/// Splits at the colon that ends a scheme or a host.
fn split(first: &str) -> Option<(&str, &str)> {
    if first.starts_with('[')
        && let Some(end) = first.find(']')
    {
        let (host, rest) = first.split_at(end + 1);
        return rest.strip_prefix(':').map(|rest| (host, rest));
    }
    first.split_once(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_ekko_does_not_know_is_no_path() {
        for (text, right) in [
            ("s3:bucket", "-r https://HOST:6800"),
            ("s3:https://host/bucket", "-r https://HOST:6800"),
            ("SFTP:user@host:/srv", "-r https://HOST:6800"),
            ("backup.example.org:6800", "-r https://backup.example.org:6800 "),
            ("backup.example.org:6800/v1", "-r https://backup.example.org:6800 "),
            ("[::1]:6800", "-r https://[::1]:6800 "),
            ("https:backup.example.org:6800", "-r https://backup.example.org:6800 "),
            ("https:/backup.example.org", "-r https://backup.example.org "),
            ("HTTPS://backup.example.org", "-r https://backup.example.org "),
            ("http:", "-r http://HOST:6800 "),
            ("file:///srv/store", "-r /srv/store "),
            ("root@backup:/srv/store", "-r https://backup:6800 "),
            ("backup:store", "-r https://backup:6800 "),
        ] {
            let said = misspelled(text).unwrap_or_default();
            assert!(said.contains(right) && said.contains(&format!("-r ./{text}")), "{text}: {said}");
        }
        for text in
            ["https://host:6800", "http://localhost", "/srv/s3:x", "./s3:bucket", "store", "a/b:c", ""]
        {
            assert_eq!(misspelled(text), None);
        }
    }
}
