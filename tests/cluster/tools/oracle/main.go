// Answers one question per line: would kube-scheduler's structured allocator give these claims
// devices of this node, and which? Nothing of a cluster is needed.
//
// A line of standard input is a question, a line of standard output its answer, in the same order.
// The program ends with its input. What a question cannot say wrongly without being noticed is
// decoded strictly; the features alone are lenient, because each version knows its own.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/dynamic-resource-allocation/structured"
)

// Backtracking over hopeless requests has no natural end; the scheduler gives up after this time.
const timeLimit = 10 * time.Second

const cachedExpressions = 4096

type question struct {
	Features  json.RawMessage             `json:"features"`
	Node      corev1.Node                 `json:"node"`
	Slices    []resourceapi.ResourceSlice `json:"slices"`
	Classes   []resourceapi.DeviceClass   `json:"classes"`
	Allocated []resourceapi.ResourceClaim `json:"allocated"`
	Claims    []resourceapi.ResourceClaim `json:"claims"`
}

// An answer has an allocation for each claim, or none where the node has no room.
type answer struct {
	Allocations []resourceapi.AllocationResult `json:"allocations"`
	Error       string                         `json:"error,omitempty"`
	OfNode      bool                           `json:"ofNode,omitempty"`
}

type allocator struct {
	caches map[cel.Features]*cel.Cache
}

func main() {
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
}

func serve(in io.Reader, out io.Writer) error {
	lines := bufio.NewReaderSize(in, 1<<20)
	answers := json.NewEncoder(out)
	asked := &allocator{caches: map[cel.Features]*cel.Cache{}}
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := answers.Encode(asked.answer(line)); err != nil {
			return err
		}
	}
}

func (a *allocator) answer(line []byte) answer {
	var asked question
	strict := json.NewDecoder(bytes.NewReader(line))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&asked); err != nil {
		return answer{Error: "question: " + err.Error()}
	}
	var features structured.Features
	if err := json.Unmarshal(asked.Features, &features); err != nil {
		return answer{Error: "features: " + err.Error()}
	}
	found, err := a.allocate(&asked, features)
	if err != nil {
		return answer{Error: err.Error(), OfNode: errors.Is(err, structured.ErrFailedAllocationOnNode)}
	}
	return answer{Allocations: found}
}

func (a *allocator) allocate(
	asked *question, features structured.Features,
) ([]resourceapi.AllocationResult, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeLimit)
	defer cancel()
	slices := make([]*resourceapi.ResourceSlice, len(asked.Slices))
	for i := range asked.Slices {
		slices[i] = &asked.Slices[i]
	}
	claims := make([]*resourceapi.ResourceClaim, len(asked.Claims))
	for i := range asked.Claims {
		setDefaults(&asked.Claims[i])
		claims[i] = &asked.Claims[i]
	}
	made, err := structured.NewAllocator(
		ctx, features, sumUp(asked.Allocated, features), classes(asked.Classes), slices, a.cache(features),
	)
	if err != nil {
		return nil, err
	}
	return made.Allocate(ctx, &asked.Node, claims)
}

func (a *allocator) cache(features structured.Features) *cel.Cache {
	wanted := cel.Features{
		EnableConsumableCapacity: features.ConsumableCapacity,
		EnableListTypeAttributes: features.ListTypeAttributes,
	}
	if a.caches[wanted] == nil {
		a.caches[wanted] = cel.NewCache(cachedExpressions, wanted)
	}
	return a.caches[wanted]
}

// Counts what is allocated as kube-scheduler does: administrators' devices not at all, shares by
// their capacity, all others as whole devices.
func sumUp(claims []resourceapi.ResourceClaim, features structured.Features) structured.AllocatedState {
	state := structured.AllocatedState{
		AllocatedDevices:         sets.New[structured.DeviceID](),
		AllocatedSharedDeviceIDs: sets.New[structured.SharedDeviceID](),
		AggregatedCapacity:       structured.NewConsumedCapacityCollection(),
	}
	for _, claim := range claims {
		if claim.Status.Allocation == nil {
			continue
		}
		for _, result := range claim.Status.Allocation.Devices.Results {
			if result.AdminAccess != nil && *result.AdminAccess {
				continue
			}
			id := structured.MakeDeviceID(result.Driver, result.Pool, result.Device)
			if !features.ConsumableCapacity || result.ShareID == nil {
				state.AllocatedDevices.Insert(id)
				continue
			}
			state.AllocatedSharedDeviceIDs.Insert(structured.MakeSharedDeviceID(id, result.ShareID))
			state.AggregatedCapacity.Insert(structured.NewDeviceConsumedCapacity(id, result.ConsumedCapacity))
		}
	}
	return state
}

// What the API server would have written into a stored claim.
func setDefaults(claim *resourceapi.ResourceClaim) {
	for i := range claim.Spec.Devices.Requests {
		request := &claim.Spec.Devices.Requests[i]
		if exactly := request.Exactly; exactly != nil {
			setMode(&exactly.AllocationMode, &exactly.Count)
		}
		for j := range request.FirstAvailable {
			setMode(&request.FirstAvailable[j].AllocationMode, &request.FirstAvailable[j].Count)
		}
	}
}

func setMode(mode *resourceapi.DeviceAllocationMode, count *int64) {
	if *mode == "" {
		*mode = resourceapi.DeviceAllocationModeExactCount
	}
	if *mode == resourceapi.DeviceAllocationModeExactCount && *count == 0 {
		*count = 1
	}
}

type classes []resourceapi.DeviceClass

func (c classes) List() ([]*resourceapi.DeviceClass, error) {
	found := make([]*resourceapi.DeviceClass, len(c))
	for i := range c {
		found[i] = &c[i]
	}
	return found, nil
}

func (c classes) Get(name string) (*resourceapi.DeviceClass, error) {
	for i := range c {
		if c[i].Name == name {
			return &c[i], nil
		}
	}
	return nil, fmt.Errorf("device class %q does not exist", name)
}
