//! The Self-MoE paper's own figures, shown beside ours for orientation only: another base, other benchmarks.

/// A row of the paper's tables: right answers in percent, by our domain of the same kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PaperRow {
    /// MMLU (knowledge), BBH (reasoning), GSM8K (math), HumanEval (coding).
    domains: Option<[f64; 4]>,
    /// The average, where the paper states it.
    pub(super) average: Option<f64>,
}

impl PaperRow {
    pub(super) fn domain(&self, name: &str) -> Option<f64> {
        let at = ["knowledge", "reasoning", "math", "coding"].iter().position(|known| *known == name)?;
        Some(self.domains?[at])
    }
}

/// Gemma-7B in Kang et al., ICLR 2025 (arXiv 2406.12034), for a method as our tables name it.
pub(super) fn paper_row(method: &str) -> Option<PaperRow> {
    let full = |domains, average| Some(PaperRow { domains: Some(domains), average });
    let average = |average| Some(PaperRow { domains: None, average: Some(average) });
    match method {
        "base" => full([58.4, 56.1, 42.5, 34.1], Some(47.8)),
        "expert knowledge" => full([64.0, 41.7, 40.5, 28.0], None),
        "expert reasoning" => full([60.1, 60.2, 41.0, 28.7], None),
        "expert math" => full([59.3, 58.9, 50.0, 36.0], None),
        "expert coding" => full([57.2, 57.2, 46.0, 37.2], None),
        "instance-merging" => full([62.6, 57.6, 53.5, 36.0], Some(52.4)),
        "ties" => full([63.7, 56.3, 38.5, 32.9], Some(47.9)),
        "dare" => full([37.7, 59.6, 45.0, 34.8], Some(44.3)),
        "mixture" => full([65.6, 61.1, 52.5, 37.8], Some(54.3)),
        "random" => average(50.8),
        "joint" => average(50.5),
        "seed-only" => average(48.4),
        _ => None,
    }
}
