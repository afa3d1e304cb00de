"""What cards, shares and pods do, as numbers and pages."""
