//! Versions of the code that makes each kind of task.

/// A number a kind of task, to be raised whenever the code comes to make other bytes from the same inputs: runs and studies make again what
/// another version has made. `crates/cli/tests/run/versions.rs` fails when the bytes have changed and the number has not.
const VERSIONS: [(&str, u32); 15] = [
    ("brainstorm", 2),
    ("select", 1),
    ("respond", 2),
    ("sample", 2),
    ("tests", 2),
    ("round_trip", 2),
    ("assemble", 4),
    ("quality", 2),
    ("expert", 2),
    ("statistics", 2),
    ("router", 2),
    ("baseline", 1),
    ("eval", 4),
    ("routing", 2),
    ("report", 1),
];

/// What a task of this id does: the word that says so, which tasks of later rounds and of baselines have behind a place.
fn kind(id: &str) -> &str {
    let words: Vec<&str> = id.split('/').collect();
    match words[..] {
        [round, kind, ..] if round.starts_with("round") && round != "round_trip" => kind,
        // The experts, statistics and router of a baseline are made as the run's own; of any other baseline there is one task.
        ["baseline", _, kind, ..] => kind,
        [kind, ..] => kind,
        [] => id,
    }
}

/// The version of the code for tasks of this id. Every id of a plan has one.
pub(super) fn version(id: &str) -> u32 {
    let kind = kind(id);
    // A kind that is not listed is a mistake, which a test finds; as version 0 it would be made again once it is listed.
    VERSIONS.iter().find(|(known, _)| *known == kind).map_or(0, |(_, version)| *version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let check = |id: &str, expected: &str| {
            assert_eq!(kind(id), expected, "{id}");
            assert!(version(id) > 0, "{id}");
        };
        check("brainstorm/math/0", "brainstorm");
        check("round_trip/math/0", "round_trip");
        check("round1/respond/math/0", "respond");
        check("round2/round_trip/math/0", "round_trip");
        check("round1/expert/math", "expert");
        check("expert/round1", "expert");
        check("baseline/ties-0.2", "baseline");
        check("baseline/seed-only/expert/math", "expert");
        check("baseline/seed-only/statistics/block-2048/math", "statistics");
        check("baseline/seed-only/router", "router");
        check("eval/expert-math/0", "eval");
        check("report", "report");
        check("router", "router");
    }
}
