module hami-dra/bench

go 1.26
