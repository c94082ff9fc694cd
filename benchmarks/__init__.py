"""Speed, measured side by side in one run. Ratios hold on other machines, times do not."""
