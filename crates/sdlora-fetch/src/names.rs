//! Names in addresses and names of files: how one becomes the other without leaving its folder.

use std::path::{Component, Path};

/// A part of an address: everything but letters, digits and `-._~` as `%XX`.
pub(crate) fn encode(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A relative path with `/`, as part of an address.
pub(crate) fn encode_path(path: &str) -> String {
    path.split('/').map(encode).collect::<Vec<_>>().join("/")
}

/// Whether a name with `/` stays below the folder it is joined to, on every system.
pub(crate) fn is_below(name: &str) -> bool {
    let plain = !name.is_empty()
        && !name.contains(['\\', ':'])
        && !name.chars().any(char::is_control)
        && name.split('/').all(|part| !part.is_empty() && part != ".");
    plain
        && Path::new(name)
            .components()
            .all(|c| matches!(c, Component::Normal(_)))
}

/// An address without user, query and fragment, as it may stand in a message.
pub(crate) fn shown(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let url = &url[..end];
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let host_end = rest.find('/').unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

/// Scheme and host with port in lower case: what a token is meant for.
pub(crate) fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = &rest[..end];
    (!host.is_empty()).then(|| format!("{scheme}://{host}").to_ascii_lowercase())
}

/// The address a redirect leads to.
pub(crate) fn join(base: &str, location: &str) -> Option<String> {
    if location.contains("://") && !location.starts_with('/') {
        return Some(location.to_owned());
    }
    let origin_len = origin(base)?.len();
    let (origin, path) = base.split_at(origin_len);
    if location.starts_with("//") {
        let (scheme, _) = base.split_once("://")?;
        return Some(format!("{scheme}:{location}"));
    }
    if location.starts_with('/') {
        return Some(format!("{origin}{location}"));
    }
    let path = &path[..path.find(['?', '#']).unwrap_or(path.len())];
    let folder = &path[..path.rfind('/').map_or(0, |i| i + 1)];
    let folder = if folder.is_empty() { "/" } else { folder };
    Some(format!("{origin}{folder}{location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_their_folder_are_recognised() {
        for name in [
            "../x",
            "a/../x",
            "/etc/passwd",
            "a//b",
            "./x",
            "",
            "a\\b",
            "C:x",
            "a/..",
            "a\0b",
            "a/",
        ] {
            assert!(!is_below(name), "{name:?}");
        }
        for name in [
            "model.safetensors",
            "unet/model-00001-of-00002.safetensors",
            "..x",
        ] {
            assert!(is_below(name), "{name:?}");
        }
    }

    #[test]
    fn redirects_are_joined_to_their_base() {
        let base = "https://hub.example:8080/a/b/c?x=1";
        for (location, expected) in [
            ("https://cdn.example/z?sig=1", "https://cdn.example/z?sig=1"),
            ("//cdn.example/z", "https://cdn.example/z"),
            ("/z", "https://hub.example:8080/z"),
            ("z", "https://hub.example:8080/a/b/z"),
            (
                "/z?to=http://other",
                "https://hub.example:8080/z?to=http://other",
            ),
        ] {
            assert_eq!(
                join(base, location).as_deref(),
                Some(expected),
                "{location}"
            );
        }
        assert_eq!(
            join("https://hub.example", "z").as_deref(),
            Some("https://hub.example/z")
        );
    }

    #[test]
    fn another_port_or_scheme_is_another_origin() {
        assert_eq!(
            origin("HTTP://Host:80/x").as_deref(),
            Some("http://host:80")
        );
        assert_ne!(origin("http://h:1/x"), origin("http://h:2/x"));
        assert_ne!(origin("http://h/x"), origin("https://h/x"));
        assert_eq!(origin("http:///x"), None);
    }

    #[test]
    fn secrets_of_an_address_are_not_shown() {
        assert_eq!(shown("https://u:p@h/a@b?sig=secret#f"), "https://h/a@b");
        assert_eq!(shown("https://h/a"), "https://h/a");
    }

    #[test]
    fn slashes_and_spaces_of_a_part_are_encoded() {
        assert_eq!(encode("refs/pr/1 ü"), "refs%2Fpr%2F1%20%C3%BC");
        assert_eq!(encode_path("a b/c"), "a%20b/c");
    }
}
