"""Pods as people, mutating webhooks and attackers might write them, for laws that hold for all."""
