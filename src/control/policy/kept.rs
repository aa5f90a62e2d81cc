//! What is wanted of the policy, as the store has kept it. Pure.

use crate::policy::rules::Rules;

/// What is wanted, and whether that is what was kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// What is gone by.
    pub rules: Rules,
    /// Why what was kept is not gone by, and what to do; `None`: it is.
    pub problem: Option<String>,
}

impl From<Rules> for Kept {
    fn from(rules: Rules) -> Kept {
        Kept { rules, problem: None }
    }
}

/// What is wanted, as it was kept; `None`: nobody has said anything. What cannot be is not gone by, and a problem.
#[must_use]
pub fn kept_rules(text: Option<&str>) -> Kept {
    let Some(text) = text else { return Kept::default() };
    read_rules(text).map_or_else(
        |error| {
            let problem = format!(
                "what was wanted of the policy cannot be gone by ({error}): as if nobody had said anything, it only advises, and no VHD grows \
                 because of its mode; say again what is wanted, with 'spanblk policy set', or go back to the version of spanblk that wrote it"
            );
            Kept { rules: Rules::default(), problem: Some(problem) }
        },
        Kept::from,
    )
}

/// It was kept by this program, by another version or, in a dump, by anybody.
fn read_rules(text: &str) -> Result<Rules, Box<dyn std::error::Error>> {
    let rules: Rules = serde_json::from_str(text)?;
    rules.check_numbers()?;
    Ok(rules)
}
