import pytest
import torch

from utils.sam.regions import border_band, component_prompts, connected_components, paint_classes


def flood_fill(classes: list[list[int]]) -> list[list[int]]:
    """Number the 8-connected regions the slow way."""
    height, width = len(classes), len(classes[0])
    numbers = [[-1] * width for _ in range(height)]
    count = 0
    for start in ((y, x) for y in range(height) for x in range(width)):
        if numbers[start[0]][start[1]] >= 0:
            continue
        numbers[start[0]][start[1]] = count
        stack = [start]
        while stack:
            y, x = stack.pop()
            for v in range(max(y - 1, 0), min(y + 2, height)):
                for u in range(max(x - 1, 0), min(x + 2, width)):
                    if numbers[v][u] < 0 and classes[v][u] == classes[y][x]:
                        numbers[v][u] = count
                        stack.append((v, u))
        count += 1
    return numbers


@pytest.mark.parametrize("seed", range(60))
def test_components_equal_those_of_a_flood_fill(seed):
    generator = torch.Generator().manual_seed(seed)
    height, width = torch.randint(1, 25, (2,), generator=generator).tolist()
    classes = torch.randint(2 + seed % 3, (height, width), generator=generator, dtype=torch.uint8)
    assert connected_components(classes).tolist() == flood_fill(classes.tolist())


def test_prompts_lie_deep_inside_their_component():
    pred = torch.zeros(9, 12, dtype=torch.uint8)
    pred[1:8, 1:6] = 1  # 7 x 5: depth 3 in column 3; the middle is row 4
    pred[2:3, 7:12] = 2  # a line: its middle is column 9
    pred[5:8, 8] = 2  # an L whose middle lies nowhere near its centre of mass
    pred[7, 8:12] = 2
    prompts = component_prompts(pred, first_class=1)
    assert prompts.boxes.tolist() == [[1, 1, 5, 7], [7, 2, 11, 2], [8, 5, 11, 7]]
    assert prompts.points.tolist()[:2] == [[3, 4], [9, 2]]
    assert prompts.classes.tolist() == [1, 2, 2]
    column, row = prompts.points[2]
    assert pred[row, column] == 2
    assert len(component_prompts(pred).classes) == 4  # and the background


@pytest.mark.parametrize("seed", range(5))
def test_every_component_has_its_own_prompt(seed):
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randint(3, (20, 30), generator=generator)
    components = connected_components(pred)
    prompts = component_prompts(pred)
    columns, rows = prompts.points.T
    assert components[rows, columns].tolist() == list(range(int(components.max()) + 1))
    for number, box in enumerate(prompts.boxes.tolist()):
        y, x = torch.nonzero(components == number, as_tuple=True)
        assert box == [int(x.min()), int(y.min()), int(x.max()), int(y.max())]


@pytest.mark.parametrize("width", [1, 3, 4])
def test_band_equals_its_definition_pixel_by_pixel(width):
    generator = torch.Generator().manual_seed(width)
    target = torch.tensor([0, 0, 0, 1, 255])[torch.randint(5, (5, 6), generator=generator)]
    target = target.repeat_interleave(4, 0).repeat_interleave(5, 1)
    found = border_band(target, width)
    for y in range(target.shape[0]):
        for x in range(target.shape[1]):
            near = target[max(y - width, 0) : y + width + 1, max(x - width, 0) : x + width + 1]
            assert found[y, x] == bool(target[y, x] != 255 and (near != target[y, x]).any())


def test_lower_class_wins_a_tie_and_a_mask_of_void_alone_is_left_out():
    half = torch.tensor([[2, 2, 1, 1]])
    assert paint_classes([half > 0], half, half, 3).tolist() == [[1, 1, 1, 1]]
    void = torch.full_like(half, 255)
    assert torch.equal(paint_classes([half > 0], void, half, 3), half)
