"""The machine that cpulm runs on: processor, memory, power, sleep, processes."""
