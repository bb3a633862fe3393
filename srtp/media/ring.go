package media

import "sync/atomic"

// ring carries values from a forwarding thread to the control side: one writer at a time, one reader, no lock, no
// allocation.
type ring[T any] struct {
	values []T
	head   atomic.Uint64 // next to read
	tail   atomic.Uint64 // next to write
}

// newRing makes a ring of n values.
func newRing[T any](n int) *ring[T] { return &ring[T]{values: make([]T, n)} }

// next is the place of the next value, nil if the ring is full. put publishes it.
func (r *ring[T]) next() *T {
	t := r.tail.Load()
	if t-r.head.Load() == uint64(len(r.values)) {
		return nil
	}
	return &r.values[t%uint64(len(r.values))]
}

func (r *ring[T]) put() { r.tail.Add(1) }

// first is the oldest value, nil if there is none. It may be read until drop.
func (r *ring[T]) first() *T {
	h := r.head.Load()
	if h == r.tail.Load() {
		return nil
	}
	return &r.values[h%uint64(len(r.values))]
}

func (r *ring[T]) drop() { r.head.Add(1) }
